#!/usr/bin/env bash
# Base-to-new, second half: test the model that base2new_train.sh made on the new classes.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
arguments "DATASET SEED" 2 2 "$@"
run base2new_test "$1" "$2"
