#!/usr/bin/env bash
# Cross-dataset, first half: train on all classes of ImageNet.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
arguments "SEED" 1 1 "$@"
run xd_train imagenet "$1"
