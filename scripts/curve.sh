#!/usr/bin/env bash
# Base against new: every model that scripts/choose.sh trained is tested on the test images of both halves, and
# ZeroshotCLIP as rate 0. Then the curve of every method over its rates, and its accuracy on new classes where base
# classes are equally well known:
#   PREC=fp32 bash scripts/curve.sh emoji
# MODELS is the folder of choose.sh. Give the same RATES, EPOCHS, SEEDS, TRAINERS and PRESETS.
DEFAULT_OUTPUT=output/curve
. "$(dirname "$0")/common.sh"
for_all_methods "$@"
MODELS=${MODELS:-$ROOT/output/choose}
absolute MODELS
grid=$OUTPUT
export OUTPUT PYTHON PREC OPTIONS TRAINER PRESET

# tested TRIAL SEED: both halves on the test images, by the model that choose.sh trained.
tested() {
  local rate=${1%x*} epochs= trained stage shots cfg folder model told files
  OUTPUT=$MODELS/$1
  place base2new_train "$dataset" "$2"
  if ! offered; then return; fi
  trained=$folder
  if [ ! -e "$trained/result.json" ]; then
    echo "Error: no finished training in $trained; scripts/choose.sh makes it" >&2
    OUTPUT=$MODELS
    if [ "$rate" != "$1" ]; then epochs=${1#*x}; fi
    failed+="  $(given "$dataset")RATES=$rate EPOCHS=$epochs SEEDS=$2 TRAINERS=$TRAINER PRESETS=$PRESET"
    failed+=" bash $(quoted "${SHOWN}scripts/choose.sh") $dataset"$'\n'
    return
  fi
  OUTPUT=$grid/$1
  for stage in base2new_train base2new_test; do
    place $stage "$dataset" "$2"
    model=$trained
    if ! finished --eval-only --model-dir "$model"; then
      attempt $stage.sh "$dataset" "$2" --eval-only --model-dir "$model"
    fi
  done
}

dataset=$1
for seed in $SEEDS; do
  TRAINER=ZeroshotCLIP PRESET= OUTPUT=$grid/0
  base2new "$dataset" "$seed"
  for TRAINER in $(searching); do
    for PRESET in ${PRESETS:-$shared_recipe}; do
      for trial in $(trials); do tested "$trial" "$seed"; done
    done
  done
done
some_offered
report "-m results.curve" "$grid"
