#!/usr/bin/env bash
# Few-shot with 1, 2, 4, 8 and 16 shots on the given datasets (default: all eleven) with every seed in SEEDS, then the
# table.
. "$(dirname "$0")/../common.sh"
arguments "[DATASET ...]" 0 99 "$@"

for dataset in ${*:-imagenet $TARGETS}; do
  for shots in 1 2 4 8 16; do
    for seed in $SEEDS; do
      attempt few_shot.sh "$dataset" "$seed" "$shots"
    done
  done
done
report parse_test_res.py "$OUTPUT/few_shot"
