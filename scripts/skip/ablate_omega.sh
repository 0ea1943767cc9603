#!/usr/bin/env bash
# The paper's Figure 4, left, on one dataset: how many blocks LSkip skips; 0, which skips none, is not in the paper.
. "$(dirname "$0")/../ablate.sh"
for value in 0 2 4 6 8 10; do point $value TRAINER.SKIPTUNING.OMEGA $value; done
ablate omega "$@"
