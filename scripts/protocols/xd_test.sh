#!/usr/bin/env bash
# Cross-dataset, second half: test the model that xd_train.sh made on another dataset.
. "$(dirname "$0")/../common.sh"
arguments "DATASET SEED" 2 more "$@"
run xd_test "$@"
