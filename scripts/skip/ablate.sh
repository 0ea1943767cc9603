# Shared by the ablations: source ablate.sh WHAT "$@", then name the grid's points, then show. Every point is Skip Tuning
# base-to-new on one dataset with every seed in SEEDS and the preset CFG, in which only what the point names is changed.
TRAINER=SkipTuning
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
arguments "[DATASET]" 0 1 "${@:2}"
grid=$OUTPUT/ablate/$1
dataset=${2:-emoji}
export TRAINER OUTPUT OPTIONS

# point NAME [KEY VALUE ...]: its runs, in a folder of that name; the keys are those of TRAINER.SKIPTUNING.
point() {
  local i seed stage
  OUTPUT=$grid/$1 OPTIONS=
  for ((i = 2; i < $#; i += 2)); do OPTIONS+="${OPTIONS:+ }TRAINER.SKIPTUNING.${*:i:2}"; done
  for seed in $SEEDS; do
    for stage in base2new_train base2new_test; do
      place $stage "$dataset" "$seed"
      # starting Python only to be told that a run is finished takes seconds, so ask that only if a setting is newer
      if [ "$folder/result.json" -nt "configs/trainers/$TRAINER/$cfg.yaml" ]; then continue; fi
      attempt $stage.sh "$dataset" "$seed"
    done
  done
}

# show: the table and the plot of all points, then what failed.
show() {
  local status=0
  "$PYTHON" -m benchmarks.ablation "$grid" || status=1
  finish $status
}
