#!/usr/bin/env bash
# Cross-dataset, first half: train on all classes of ImageNet.
. "$(dirname "$0")/../common.sh"
arguments "SEED" 1 more "$@"
run xd_train imagenet "$@"
