#!/usr/bin/env bash
# Every method in base-to-new with its own recipe and with Skip Tuning's batch size and epochs, every seed in SEEDS, then
# the paper's Tables 1 and 5 for it, with the paper's own numbers beside:
#   bash scripts/compare.sh emoji
# TRAINERS and PRESETS choose some of them; PREC=bf16 takes half the time where the CPU has bf16. Seed by seed, the
# methods take turns; what is finished is not run again.
OUTPUT=${OUTPUT:-output/compare}
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
arguments DATASET 1 1 "$@"
FOLDER=scripts/skip  # whose verbs serve any TRAINER
trap 'printf "\nStopped; give the same command again to go on from here.\n" >&2; exit 130' INT
export OUTPUT PYTHON PREC

for seed in $SEEDS; do
  for trainer in ${TRAINERS:-$(ls configs/trainers)}; do
    for preset in ${PRESETS:-recommended matched cached}; do
      export TRAINER=$trainer PRESET=$preset
      settings="TRAINER=$trainer PRESET=$preset "
      place base2new_train "$1" 1
      if [ ! -e "configs/trainers/$trainer/$cfg.yaml" ]; then continue; fi  # not every method has every recipe
      base2new "$1" "$seed"
    done
  done
done
status=0
"$PYTHON" -m results.comparison "$OUTPUT" || status=1
finish $status
