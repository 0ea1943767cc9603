#!/usr/bin/env bash
# Where a method's paper and its released code differ, on one dataset: the recipe, then one choice at a time as the
# other of the two has it:
#   bash scripts/skip/ablate_choices.sh
#   bash scripts/mmrl/ablate_choices.sh
. "$(dirname "$0")/../ablate.sh"
point preset
case $TRAINER in
  SkipTuning)
    point scope_image TRAINER.SKIPTUNING.SCOPE image
    point decay_official TRAINER.SKIPTUNING.DECAY official
    point resample_run TRAINER.SKIPTUNING.RESAMPLE run
    point max_top_0 TRAINER.SKIPTUNING.MAX_TOP 0
    point max_top_50 TRAINER.SKIPTUNING.MAX_TOP 50
    point views_1 TRAINER.SKIPTUNING.VIEWS 1
    point single_class TRAINER.SKIPTUNING.BATCHES single_class ;;
  MMRL | MMRLpp)
    node=TRAINER.${TRAINER^^}
    point read_out_class "$node.READ_OUT" class
    point read_out_both "$node.READ_OUT" both
    point fusion_probabilities "$node.FUSION" probabilities
    if [ "$TRAINER" = MMRL ]; then point projection_copy "$node.PROJECTION" copy; fi ;;
  TwoSFS) point norms_all TRAINER.TWOSFS.NORMS all ;;
  CLIPSVD) point cosine_run TRAINER.CLIPSVD.COSINE run ;;
  LPpp)
    point gradient_step TRAINER.LPPP.GRADIENT step
    point keep_last TRAINER.LPPP.KEEP last ;;
  *) fail 2 "Error: $TRAINER has no such choices; SkipTuning, MMRL, MMRLpp, TwoSFS, CLIPSVD and LPpp have" ;;
esac
ablate choices "$@"
