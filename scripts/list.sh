#!/usr/bin/env bash
# The commands of a sweep, one a line, each with its settings; runs that are finished are left out:
#   TRAINERS="SkipTuning CoOp" PRESETS="recommended matched" SEEDS="1 2" bash scripts/list.sh base2new eurosat dtd
#   bash scripts/list.sh few_shot dtd | tr '\n' '\0' | xargs -0 -P 2 -n 1 bash -c    # two at once
#   bash scripts/list.sh xd >jobs
#   sbatch --array=1-$(wc -l <jobs) --wrap 'bash -c "$(sed -n "${SLURM_ARRAY_TASK_ID}p" jobs)"'
# The first argument is base2new, few_shot or xd; the others are datasets, by default those of the paper (for xd those
# that are tested on). A line of base2new trains and tests on one dataset, a line of xd trains and tests on all of them.
# SHOTS may be several numbers for few_shot.
. "$(dirname "$0")/common.sh"
TRAINERS=${TRAINERS:-$TRAINER} PRESETS=${PRESETS:-${PRESET:-recommended}}
sweep "$@"
verbs=$(quoted "${SHOWN}scripts/protocols")

# add STAGE DATASET ARGUMENT...: adds this run to the commands of the line, if it isn't finished.
add() {
  local shots cfg folder model told files
  place "$1" "$2" "$seed"
  if ! offered || finished; then return; fi
  commands+=" && bash $verbs/$1.sh ${*:3}"
}

# line: prints the commands that were added, if there are any, to be run one after the other.
line() {
  if [ -n "$commands" ]; then
    echo "export TRAINER=$TRAINER PRESET=$PRESET ${settings% }$commands"
  fi
  commands=
}

commands=
for seed in $SEEDS; do
  for TRAINER in $TRAINERS; do
    for PRESET in $PRESETS; do
      for SHOTS in ${numbers:-""}; do
        settings=$(given "$datasets")
        if [ $protocol = xd ]; then add xd_train imagenet "$seed"; fi
        for dataset in $datasets; do
          case $protocol in
            base2new)
              add base2new_train "$dataset" "$dataset" "$seed"
              add base2new_test "$dataset" "$dataset" "$seed"
              line ;;
            few_shot)
              add few_shot "$dataset" "$dataset" "$seed" "$SHOTS"
              line ;;
            xd) add xd_test "$dataset" "$dataset" "$seed" ;;
          esac
        done
        line
      done
    done
  done
done
some_offered
