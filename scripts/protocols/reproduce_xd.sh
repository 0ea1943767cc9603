#!/usr/bin/env bash
# Cross-dataset and domain generalisation: train on ImageNet, test on the ten other datasets and four ImageNet variants.
. "$(dirname "$0")/../common.sh"
arguments "" 0 0 "$@"

for seed in $SEEDS; do
  attempt xd_train.sh "$seed"
  for dataset in $TARGETS $VARIANTS; do
    attempt xd_test.sh "$dataset" "$seed"
  done
done
report parse_test_res.py "$OUTPUT/imagenet" "$OUTPUT/evaluation"
