#!/usr/bin/env bash
# Cross-dataset, second half: test the model that xd_train.sh made on another dataset.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
arguments "DATASET SEED" 2 2 "$@"
run xd_test "$1" "$2"
