# Shared by the ablations (sourced): name the points of a grid, then ablate. Every point is Skip Tuning (ablate_lr.sh and
# ablate_choices.sh: any method) base-to-new on one dataset with every seed in SEEDS and the recipe that PRESET or CFG
# name, in which only what the point names is changed; PREC and OPTIONS hold for all points. Memory is measured.
. "$(dirname "$0")/../common.sh"
case $0 in
  *_lr.sh | *_choices.sh) ;;
  *) TRAINER=SkipTuning ;;
esac
OPTIONS="TRAIN.MEASURE_MEMORY True${OPTIONS:+ $OPTIONS}"
export TRAINER OUTPUT OPTIONS
points=()

# point NAME [KEY VALUE ...]: adds a point to the grid.
point() { points+=("$*"); }

# ablate WHAT [DATASET]: all runs, then the table and the plot, then what failed. The points take turns, seed by seed,
# so that a slow hour of the machine meets all of them.
ablate() {
  arguments "[DATASET]" 0 1 "${@:2}"
  local grid=$OUTPUT/ablate/$1 dataset=${2:-emoji} shared=$OPTIONS seed point name
  for seed in $SEEDS; do
    for point in "${points[@]}"; do
      read -r name OPTIONS <<<"$point"
      OPTIONS="$shared${OPTIONS:+ $OPTIONS}"
      OUTPUT=$grid/$name
      base2new "$dataset" "$seed"
    done
  done
  report "-m results.ablation" "$grid"
}
