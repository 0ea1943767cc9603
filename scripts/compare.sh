#!/usr/bin/env bash
# Every method in base-to-new with its own recipe and with Skip Tuning's batch size and epochs, every seed in SEEDS,
# then the paper's Tables 1 and 5 for it, with the paper's own numbers beside:
#   bash scripts/compare.sh emoji
# TRAINERS and PRESETS choose some of them; PREC=bf16 takes half the time where the CPU has bf16. Seed by seed, the
# methods take turns; what is finished is not run again. Memory is measured, and the tests keep their logits, for the
# numbers of base and new classes in one test (OPTIONS="TEST.SAVE_LOGITS False": without).
DEFAULT_OUTPUT=output/compare
. "$(dirname "$0")/common.sh"
for_all_methods "$@"
OPTIONS="TRAIN.MEASURE_MEMORY True TEST.SAVE_LOGITS True${OPTIONS:+ $OPTIONS}"
export OUTPUT PYTHON PREC OPTIONS

for seed in $SEEDS; do
  for TRAINER in ${TRAINERS:-$(ls configs/trainers)}; do
    for PRESET in ${PRESETS:-recommended matched cached uniform}; do
      export TRAINER PRESET
      place base2new_train "$1" 1
      if offered; then base2new "$1" "$seed"; fi
    done
  done
done
some_offered
report "-m results.comparison" "$OUTPUT"
