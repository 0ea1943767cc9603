# Shared by all scripts (sourced, not run): settings, output folders, and the one place where a run is started.
set -euo pipefail
SCRIPT=$(cd "$(dirname "$0")" && pwd)/$(basename "$0")  # links are not followed: scripts/coop is one to scripts/skip
# The dataset custom: IMAGES (or DATA) and CLASSNAMES are the user's own files, seen from where the script was called.
IMAGES=${IMAGES:-${DATA:-}}
CLASSNAMES=${CLASSNAMES:-}
for name in IMAGES CLASSNAMES; do
  if [[ -n ${!name} && ${!name} != /* ]]; then printf -v $name %s "$PWD/${!name}"; fi
done
export IMAGES CLASSNAMES
cd "$(dirname "${BASH_SOURCE[0]}")/.."
SCRIPT=${SCRIPT#"$PWD"/}
FOLDER=$(dirname "$SCRIPT")

if [ -x .venv/bin/python ]; then PYTHON=${PYTHON:-.venv/bin/python}; fi
PYTHON=${PYTHON:-python3}
DATA=${DATA:-./data}
OUTPUT=${OUTPUT:-./output}
# scripts/clip_adapter/ is for the trainer CLIPAdapter, and so on; scripts/skip/ is for any TRAINER.
METHOD=$(basename "$FOLDER")
TRAINER=$(ls configs/trainers | grep -ix "${METHOD//_/}" || echo "${TRAINER:-SkipTuning}")
SEEDS=${SEEDS:-1 2 3}
OPTIONS=${OPTIONS:-}  # KEY VALUE ... for train.py; each ablation sets its own
PREC=${PREC:-}        # fp32, bf16, amp ...: the trainer's own option; empty: as its preset says

TARGETS="caltech101 oxford_pets stanford_cars oxford_flowers food101 fgvc_aircraft sun397 dtd eurosat ucf101"
VARIANTS="imagenetv2 imagenet_sketch imagenet_a imagenet_r"
failed=
settings=  # what must stand before the commands that `attempt` remembers

# arguments NAMES LEAST MOST "$@": stops with a usage line unless the script got LEAST to MOST arguments.
arguments() {
  if (($# - 3 < $2 || $# - 3 > $3)) || [[ ${4:-} == -* ]]; then
    echo "usage: [DATA=... PRESET=paper|official|recommended|matched|cached PREC=... CFG=... SHOTS=... OUTPUT=... TRAINER=... SEEDS=... PYTHON=...] bash $SCRIPT $1" >&2
    exit 2
  fi
}

# place STAGE DATASET SEED: sets shots, cfg (the name of the trainer's YAML file) and folder (where the run leaves its files).
place() {
  case $2 in
    emoji) shots=${SHOTS:-5} ;;  # all it has
    *) shots=${SHOTS:-16} ;;
  esac
  local preset=${PRESET:-recommended}
  preset=_$preset
  preset=${preset#_recommended}
  case $1:$2 in
    xd_*) cfg=vit_b16${preset}_xd ;;
    *:emoji) cfg=embedded$preset ;;
    few_shot:*) cfg=vit_b16${preset}_few_shot ;;
    *) cfg=vit_b16$preset ;;
  esac
  cfg=${CFG:-$cfg}
  case $1 in
    base2new_train) folder=base2new/train_base/$2/shots_$shots/$TRAINER/$cfg ;;
    base2new_test) folder=base2new/test_new/$2/shots_$shots/$TRAINER/$cfg ;;
    few_shot) folder=few_shot/$2/$TRAINER/${cfg}_${shots}shots ;;
    xd_train) folder=imagenet/$TRAINER/${cfg}_${shots}shots ;;
    xd_test) folder=evaluation/$TRAINER/${cfg}_${shots}shots/$2 ;;
  esac
  folder=$OUTPUT/$folder/seed$3
}

# finished: whether the run in $folder is over and no config is newer. train.py says the same, but takes seconds to start.
finished() {
  [ -e "$folder/result.json" ] && [ -z "$(find configs -name '*.yaml' -newer "$folder/result.json")" ]
}

# trained STAGE DATASET SEED COMMAND: sets folder to that finished training, or stops and names the command for it.
trained() {
  place "$1" "$2" "$3"
  if [ ! -e "$folder/result.json" ]; then
    echo "Error: no finished training in $folder; run this first, with the same settings: bash $FOLDER/$4" >&2
    exit 1
  fi
}

# run STAGE DATASET SEED: one call of train.py, which skips a finished run and resumes an unfinished one.
run() {
  local stage=$1 dataset=$2 seed=$3 classes=all root=$DATA shots cfg folder
  set --
  case $stage in
    base2new_train) classes=base ;;
    base2new_test)
      classes=new
      trained base2new_train "$dataset" "$seed" "base2new_train.sh $dataset $seed"
      set -- --eval-only --model-dir "$folder" ;;
    xd_test)
      trained xd_train imagenet "$seed" "xd_train.sh $seed"
      set -- --eval-only --model-dir "$folder" ;;
  esac
  if [ "$dataset" = custom ]; then
    root=$OUTPUT  # the folder with the pictures is only read: their split is kept with the results
    set -- "$@" DATASET.IMAGES "$IMAGES" DATASET.CLASSNAMES "$CLASSNAMES" DATASET.TEMPLATE "${TEMPLATE:-}"
  fi
  place "$stage" "$dataset" "$seed"
  local node  # the trainer's options; full fine-tuning has Skip Tuning's
  node=$(tr a-z A-Z <<<"${TRAINER/FinetuneCLIP/SkipTuning}")
  "$PYTHON" train.py --root "$root" --seed "$seed" --trainer "$TRAINER" \
    --dataset-config-file "configs/datasets/$dataset.yaml" \
    --config-file "configs/trainers/$TRAINER/$cfg.yaml" \
    --output-dir "$folder" "$@" DATASET.NUM_SHOTS "$shots" DATASET.SUBSAMPLE_CLASSES "$classes" \
    ${PREC:+"TRAINER.$node.PREC" "$PREC"} $OPTIONS
}

# attempt SCRIPT ARGUMENTS...: runs it and remembers it when it fails, so that the others still get their turn.
attempt() {
  local status=0
  echo "== $settings$*"
  bash "$FOLDER/$1" "${@:2}" || status=$?
  if ((status == 130)); then exit 130; fi
  if ((status)); then failed+="  ${settings}bash $FOLDER/$*"$'\n'; fi
}

# base2new DATASET SEED: both halves of base-to-new, as far as they are not finished.
base2new() {
  local stage shots cfg folder
  for stage in base2new_train base2new_test; do
    place $stage "$1" "$2"
    if ! finished; then attempt $stage.sh "$1" "$2"; fi
  done
}

# report FOLDER...: the tables, then what failed; the exit code says whether all is there.
report() {
  local status=0 root
  for root; do "$PYTHON" parse_test_res.py "$root" || status=1; done
  finish $status
}

# finish STATUS: ends the script, with what failed; the exit code says whether all is there.
finish() {
  if [ -z "$failed" ]; then exit "$1"; fi
  printf 'These runs failed:\n%s' "$failed" >&2
  exit 1
}
