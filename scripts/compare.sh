#!/usr/bin/env bash
# Every method in base-to-new with its own recipe and with Skip Tuning's batch size and epochs, every seed in SEEDS, then
# one table with the published results beside ours:
#   bash scripts/compare.sh emoji
# TRAINERS and PRESETS choose some of them; what is finished is not run again.
OUTPUT=${OUTPUT:-output/compare}
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
arguments DATASET 1 1 "$@"
FOLDER=scripts/skip  # whose verbs serve any TRAINER
trap 'printf "\nStopped; give the same command again to go on from here.\n" >&2; exit 130' INT
export OUTPUT PYTHON

TRAINERS=${TRAINERS:-ZeroshotCLIP FinetuneCLIP SkipTuning $(grep -rlE 'PRESET=matched' configs/trainers | cut -d/ -f3 | sort -u)
  TipAdapter}
for trainer in $TRAINERS; do
  for preset in ${PRESETS:-recommended matched cached}; do
    export TRAINER=$trainer PRESET=$preset
    settings="TRAINER=$trainer PRESET=$preset "
    place base2new_train "$1" 1
    if [ ! -e "configs/trainers/$trainer/$cfg.yaml" ]; then continue; fi  # not every method has every recipe
    for seed in $SEEDS; do base2new "$1" "$seed"; done
  done
done
report "$OUTPUT/base2new"
