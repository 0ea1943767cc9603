#!/usr/bin/env bash
# Three methods, three seeds, base-to-new on the embedded dataset with the embedded model, then the table. Two shots and
# three epochs, so that it takes less than five minutes on two cores; scripts/compare.sh emoji runs the whole.
DEFAULT_OUTPUT=output/demo
CFG=embedded PRESET= SHOTS=${SHOTS:-2}
. "$(dirname "$0")/common.sh"
arguments "" 0 0 "$@"
OPTIONS="OPTIM.MAX_EPOCH 3 TRAIN.MEASURE_MEMORY True${OPTIONS:+ $OPTIONS}"
export OUTPUT CFG PRESET SHOTS OPTIONS TRAINER PYTHON PYTHONUNBUFFERED=1

errors=$(mktemp)
trap 'rm -f "$errors"' EXIT
trap 'printf "\nStopped; give the same command again to go on from here.\n" >&2; exit 130' INT

# progress LABEL: reads a run's output and keeps one line up to date, which ends with the accuracy.
progress() {
  local line live= accuracy=
  if [ -t 1 ]; then live=$'\r\033[K'; fi
  trap '' INT  # the run decides when it is over, also after Ctrl-C
  if [ -n "$live" ]; then printf '%s' "$1"; fi
  while IFS= read -r line; do
    case $line in
      "epoch ["*) if [ -n "$live" ]; then printf '%s%s, %s' "$live" "$1" "${line%% time*}"; fi ;;
      "* accuracy: "* | "Finished before: "*) accuracy=${line##* } ;;
    esac
  done
  printf '%s%s: %s\n' "$live" "$1" "${accuracy:-no result}"
}

count=0
set -- $SEEDS
total=$(($# * 6))
for seed; do
  for TRAINER in ZeroshotCLIP FinetuneCLIP SkipTuning; do
    for stage in base2new_train base2new_test; do
      count=$((count + 1))
      if [ $stage = base2new_train ]; then classes=base; else classes=new; fi
      place $stage emoji "$seed"
      if finished; then continue; fi
      bash scripts/protocols/$stage.sh emoji "$seed" 2>"$errors" |
        progress "[$count/$total] $TRAINER, seed $seed, $classes classes" || {
        tail -n 3 "$errors" >&2
        exit 1
      }
    done
  done
done
if "$PYTHON" -c 'from importlib.util import find_spec as f; raise SystemExit(not (f("plotly") and f("itables")))'; then
  "$PYTHON" parse_test_res.py "$OUTPUT" --html "$OUTPUT/results.html"
else
  "$PYTHON" parse_test_res.py "$OUTPUT"
  printf '\nAs a page with figures: %s -m pip install plotly itables, then the same command again\n' "$PYTHON"
fi
