#!/usr/bin/env bash
# The learning rate of every method by one rule, chosen on the validation images of the base classes alone. All methods
# get the same rates (RATES) and the same seeds. No new class and no test image is looked at:
#   PREC=fp32 bash scripts/choose.sh emoji
# TRAINERS and PRESETS choose some of the methods. What is finished is not run again. Afterwards: bash scripts/curve.sh
DEFAULT_OUTPUT=output/choose
. "$(dirname "$0")/common.sh"
for_all_methods "$@"
grid=$OUTPUT shared=$OPTIONS
export OUTPUT PYTHON PREC OPTIONS TRAINER PRESET

for seed in $SEEDS; do
  for TRAINER in $(searching); do
    for PRESET in ${PRESETS:-$shared_recipe}; do
      for rate in ${RATES:-$SEARCHED}; do
        OUTPUT=$grid/$rate
        OPTIONS="TEST.SPLIT val OPTIM.LR $rate${shared:+ $shared}"
        place base2new_train "$1" "$seed"
        if offered && ! finished; then attempt base2new_train.sh "$1" "$seed"; fi
      done
    done
  done
done
some_offered
report "-m results.choose" "$grid"
