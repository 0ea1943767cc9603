#!/usr/bin/env bash
# Base-to-new, first half: train on the base classes and test on them.
. "$(dirname "$0")/../common.sh"
arguments "DATASET SEED" 2 more "$@"
run base2new_train "$@"
