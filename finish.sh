#!/bin/bash
# finish.sh NAME...: rows of these figures from /work/wt/run/output into /work/wt/landing, run there.
cd /work/wt/landing; P=/work/main/.venv/bin/python; O=/work/wt/run/output
M="CPU (AVX512_BF16), 2 cores, two runs side by side; PyTorch 2.14.1, Python 3.11.7"
A='PREC=bf16 TRAINERS="$(ls configs/trainers | grep -v CoCoOp)"'; R='RATES="0.0003 0.001 0.003 0.01 0.03" SEEDS=1'
for n; do
  as=; from=$O/ablate/$n; c=()
  case $n in
    answer) from=$O/compare as=comparison; c=("$A SEEDS=\"1 2 3 4 5\" OPTIONS=\"TEST.TEMPERATURE auto\" bash scripts/compare.sh emoji") ;;
    rates) from=$O/choose as=choose; c=("$A $R bash scripts/choose.sh emoji" "PREC=bf16 $R PRESETS=cached TRAINERS=\"SkipTuning CLIPAdapter\" bash scripts/choose.sh emoji") ;;
    curve) from=$O/curve as=curve; c=("$A $R bash scripts/curve.sh emoji") ;;
    components) c=("PREC=bf16 SEEDS=\"1 2 3 4 5\" bash scripts/skip/ablate_components.sh") as=ablation ;;
    precision) c=("SEEDS=1 bash scripts/skip/ablate_precision.sh") as=ablation ;;
    omega|ratio|lambda|choices) c=("PREC=bf16 bash scripts/skip/ablate_$n.sh") as=ablation ;;
    shots) from=$O/shots as=runs; c=("PREC=bf16 bash scripts/<method>/few_shot.sh emoji 1 1; the same with 2 and with 4") ;;
    choices_after) from=$O/own/ablate/choices as=ablation; c=("PREC=bf16 bash scripts/mmrl/ablate_choices.sh" "PREC=bf16 bash scripts/two_sfs/ablate_choices.sh" "PREC=bf16 bash scripts/clip_svd/ablate_choices.sh" "PREC=bf16 bash scripts/lp_pp/ablate_choices.sh") ;;
    sensitivity) from=/root/land/sensitivity.json as=sensitivity; c=("python -m benchmarks.sensitivity") ;;
    demo) from=$O/demo as=runs; c=("make demo") ;;
  esac
  args=(); for x in "${c[@]}"; do args+=(--command "$x"); done
  (cd /work/wt/landing; $P -m results.figures --from $from $n --as $as --machine "$M" "${args[@]}") 2>&1 | tail -4
  (cd /work/wt/run; git rev-parse --short HEAD)
done
echo "set commit in the JSON to that of the run tree"
