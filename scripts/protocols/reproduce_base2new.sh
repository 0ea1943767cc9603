#!/usr/bin/env bash
# Base-to-new on the given datasets (default: all eleven) with every seed in SEEDS, then the table.
. "$(dirname "$0")/../common.sh"
arguments "[DATASET ...]" 0 99 "$@"

for dataset in ${*:-imagenet $TARGETS}; do
  for seed in $SEEDS; do
    attempt base2new_train.sh "$dataset" "$seed"
    attempt base2new_test.sh "$dataset" "$seed"
  done
done
report parse_test_res.py "$OUTPUT/base2new"
