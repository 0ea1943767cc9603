#!/usr/bin/env bash
# Any method's learning rate on one dataset, the same rates for all of them (or those in RATES); on the validation split
# with OPTIONS="TEST.SPLIT val":
#   OPTIONS="TEST.SPLIT val" SEEDS=1 bash scripts/coop/ablate_lr.sh
. "$(dirname "$0")/../ablate.sh"
for value in ${RATES:-0.001 0.003 0.01 0.03 0.1 0.3 1}; do point $value OPTIM.LR $value; done
ablate lr "$@"
