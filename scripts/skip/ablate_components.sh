#!/usr/bin/env bash
# The paper's Table 4 on one dataset: neither skip, each alone, both. OMEGA 0 skips no layers, R 1.0 no classes.
. "$(dirname "$0")/../ablate.sh"
point ft TRAINER.SKIPTUNING.OMEGA 0 TRAINER.SKIPTUNING.R 1.0
point lskip TRAINER.SKIPTUNING.R 1.0
point cskip TRAINER.SKIPTUNING.OMEGA 0
point both
ablate components "$@"
