#!/usr/bin/env bash
# The runs of a sweep, one a line, fields separated by tabs: stage, dataset, seed, shots, trainer, preset, folder,
# config files. sweeps/runs.py reads them; the settings are those of scripts/list.sh.
. "$(dirname "$0")/../scripts/common.sh"
sweep "$@"

# one STAGE DATASET: prints this run, if its trainer has such a recipe. Stops at a result of other settings, which
# Snakemake would take for this run's.
one() {
  local shots cfg folder model told files fields words="$2 $seed" IFS=$IFS
  place "$1" "$2" "$seed"
  if ! offered; then return; fi
  if [ -e "$folder/result.json" ] && ! same_settings; then
    if [ "$1" = xd_train ]; then words=$seed; fi
    fail 1 "Error: the run in $folder is noted with other settings; give the sweep another output. If its settings" \
      "are these, this notes them: $(given "$2" TRAINER PRESET)bash scripts/protocols/$1.sh $words"
  fi
  fields=("$1" "$2" "$seed" "$shots" "$TRAINER" "$PRESET" "$folder" "${files[@]}") IFS=$'\t'
  echo "${fields[*]}"
}

for seed in $SEEDS; do
  for TRAINER in ${TRAINERS:-$(ls configs/trainers)}; do
    for PRESET in ${PRESETS:-recommended}; do
      for SHOTS in ${numbers:-""}; do
        if [ $protocol = xd ]; then one xd_train imagenet; fi
        for dataset in $datasets; do
          case $protocol in
            base2new)
              one base2new_train "$dataset"
              one base2new_test "$dataset" ;;
            few_shot) one few_shot "$dataset" ;;
            xd) one xd_test "$dataset" ;;
          esac
        done
      done
    done
  done
done
some_offered
