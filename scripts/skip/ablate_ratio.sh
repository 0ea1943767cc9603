#!/usr/bin/env bash
# The paper's Figure 4, middle, on one dataset: the share of classes that CSkip keeps for sure.
. "$(dirname "$0")/../ablate.sh"
for value in 0.1 0.3 0.5 0.7 0.9 1.0; do point $value TRAINER.SKIPTUNING.R $value; done
ablate ratio "$@"
