#!/usr/bin/env bash
# The paper's Figure 4, right, on one dataset: how fast the other classes' probability of being kept decays.
. "$(dirname "$0")/../ablate.sh"
for value in 0.01 0.1 0.3 0.5 0.7 0.9 1.0; do point $value TRAINER.SKIPTUNING.LAMBDA $value; done
ablate lambda "$@"
