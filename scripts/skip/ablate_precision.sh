#!/usr/bin/env bash
# In which numbers Skip Tuning trains, on one dataset: trainers/parts/precision.py has the table.
. "$(dirname "$0")/../ablate.sh"
for value in fp32 bf16 amp fp16_master fp16; do point $value TRAINER.SKIPTUNING.PREC $value; done
ablate precision "$@"
