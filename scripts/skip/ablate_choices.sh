#!/usr/bin/env bash
# Where paper and released code differ, on one dataset: the preset, then one choice at a time as one of the two has it.
. "$(dirname "$0")/../ablate.sh"
point preset
point scope_image TRAINER.SKIPTUNING.SCOPE image
point decay_official TRAINER.SKIPTUNING.DECAY official
point resample_run TRAINER.SKIPTUNING.RESAMPLE run
point max_top_0 TRAINER.SKIPTUNING.MAX_TOP 0
point max_top_50 TRAINER.SKIPTUNING.MAX_TOP 50
point views_1 TRAINER.SKIPTUNING.VIEWS 1
point single_class TRAINER.SKIPTUNING.BATCHES single_class
ablate choices "$@"
