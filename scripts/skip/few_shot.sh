#!/usr/bin/env bash
# Few-shot: train on SHOTS images of every class and test on all classes.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
arguments "DATASET SEED [SHOTS]" 2 3 "$@"
SHOTS=${3:-${SHOTS:-}}
run few_shot "$1" "$2"
