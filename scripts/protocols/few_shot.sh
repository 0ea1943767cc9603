#!/usr/bin/env bash
# Few-shot: train on SHOTS images of every class and test on all classes.
. "$(dirname "$0")/../common.sh"
if [[ ${3:-} =~ ^[0-9]+$ ]]; then
  SHOTS=$3
  set -- "$1" "$2" "${@:4}"
fi
arguments "DATASET SEED [SHOTS]" 2 more "$@"
run few_shot "$@"
