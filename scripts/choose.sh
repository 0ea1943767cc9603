#!/usr/bin/env bash
# The learning rate and the epochs of every method by one rule, chosen on the validation images of the base classes
# alone. All methods get the same rates (RATES), the same epochs (EPOCHS; empty: those of the recipe, as is the default
# but for emoji) and the same seeds. No new class and no test image is looked at:
#   PREC=fp32 bash scripts/choose.sh emoji
# TRAINERS and PRESETS choose some of the methods. What is finished is not run again. Afterwards: bash scripts/curve.sh
DEFAULT_OUTPUT=output/choose
. "$(dirname "$0")/common.sh"
for_all_methods "$@"
grid=$OUTPUT shared=$OPTIONS
export OUTPUT PYTHON PREC OPTIONS TRAINER PRESET

# tried TRIAL SEED: one training, tested on validation images.
tried() {
  local rate=${1%x*} epochs shots cfg folder model told files
  OUTPUT=$grid/$1
  OPTIONS="TEST.SPLIT val OPTIM.LR $rate"
  if [ "$rate" != "$1" ]; then
    epochs=${1#*x}
    OPTIONS+=" OPTIM.MAX_EPOCH $epochs"
    # The epochs around which it averages prompts, in the paper 15 ± 1 of 20, move with their number.
    if [ "$TRAINER" = PromptSRC ]; then
      OPTIONS+=" TRAINER.PROMPTSRC.GPA_MEAN $((epochs * 75))e-2 TRAINER.PROMPTSRC.GPA_STD $((epochs * 5))e-2"
    fi
  fi
  OPTIONS+=${shared:+ $shared}
  place base2new_train "$dataset" "$2"
  if offered && ! finished; then attempt base2new_train.sh "$dataset" "$2"; fi
}

dataset=$1
for seed in $SEEDS; do
  for TRAINER in $(searching); do
    for PRESET in ${PRESETS:-$shared_recipe}; do
      for trial in $(trials); do tried "$trial" "$seed"; done
    done
  done
done
some_offered
report "-m results.choose" "$grid"
