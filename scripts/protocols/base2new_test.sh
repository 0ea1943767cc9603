#!/usr/bin/env bash
# Base-to-new, second half: test the model that base2new_train.sh made on the new classes.
. "$(dirname "$0")/../common.sh"
arguments "DATASET SEED" 2 more "$@"
run base2new_test "$@"
