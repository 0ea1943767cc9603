#!/usr/bin/env bash
# Base-to-new, first half: train on the base classes and test on them.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
arguments "DATASET SEED" 2 2 "$@"
run base2new_train "$1" "$2"
