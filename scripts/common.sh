# Shared by all scripts (sourced, not run): settings, output folders, and the one place where a run is started.
if [ -z "${BASH_VERSION:-}" ]; then
  echo "Error: this needs bash; type: bash $0 $*" >&2
  exit 2
fi
set -euo pipefail
unset CDPATH  # with it, cd prints where it went, or goes elsewhere
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
FOLDER=$(cd "$(dirname "$0")" && pwd)  # links are not followed: scripts/coop is one
FOLDER=${FOLDER#"$ROOT"/}
export CALLED_FROM=${CALLED_FROM:-$PWD}  # kept by the scripts that a script starts
SHOWN=  # what must stand before our paths in the commands that we print
if [ "$CALLED_FROM" != "$ROOT" ]; then SHOWN=$ROOT/; fi

# absolute NAME...: these variables hold paths, seen from where the script was called.
absolute() {
  local name path
  for name; do
    path=${!name}
    case $path in
      "" | /*) ;;
      "~" | "~/"*) path=$HOME${path#"~"} ;;
      *) path=$CALLED_FROM/$path ;;
    esac
    printf -v "$name" %s "$path"
  done
}

if [ -x "$ROOT/.venv/bin/python" ]; then PYTHON=${PYTHON:-$ROOT/.venv/bin/python}; fi
PYTHON=${PYTHON:-python3}
case $PYTHON in */*) absolute PYTHON ;; esac
# The dataset custom: IMAGES (or DATA) and CLASSNAMES are the user's own files.
IMAGES=${IMAGES:-${DATA:-}}
CLASSNAMES=${CLASSNAMES:-}
DATA=${DATA:-}
OUTPUT=${OUTPUT:-}
CFG=${CFG:-}  # name of a file in configs/trainers/$TRAINER, or a path
case $CFG in */*) absolute CFG ;; esac
for name in DATA OUTPUT; do
  if [[ -n $SHOWN || ${!name} = "~"* ]]; then absolute $name; fi
done
# The defaults are in the project's folder, wherever the script was called, also for the scripts that a script starts.
DATA=${DATA:-${SHOWN:-./}data}
OUTPUT=${OUTPUT:-${SHOWN:-./}${DEFAULT_OUTPUT:-output}}
absolute IMAGES CLASSNAMES
export IMAGES CLASSNAMES
cd "$ROOT"

# scripts/clip_adapter/ is for the trainer CLIPAdapter, and so on; scripts/protocols/ is for any TRAINER, by default, as
# scripts/skip/, for Skip Tuning.
METHOD=$(basename "$FOLDER")
OWN=$(ls configs/trainers | grep -ix "${METHOD//_/}" || true)
TRAINER=${OWN:-${TRAINER:-SkipTuning}}
SEEDS=${SEEDS:-1 2 3}
OPTIONS=${OPTIONS:-}  # KEY VALUE ... for train.py, quoted as in a shell; each ablation sets its own
PREC=${PREC:-}        # fp32, bf16, amp ...: the trainer's own option; empty: as its preset says

TARGETS="caltech101 oxford_pets stanford_cars oxford_flowers food101 fgvc_aircraft sun397 dtd eurosat ucf101"
SEARCHED="0.0003 0.001 0.003 0.01 0.03 0.1 0.3"  # learning rates of choose.sh and curve.sh
VARIANTS="imagenetv2 imagenet_sketch imagenet_a imagenet_r"
failed=
newest=  # config file
found=   # a recipe: see `offered`

# fail CODE WORD...: one line on stderr, then the end.
fail() {
  echo "${*:2}" >&2
  exit "$1"
}

# arguments NAMES LEAST MOST "$@": stops with a usage line unless the script got LEAST to MOST arguments. With MOST
# "more", flags of train.py or KEY VALUE pairs may follow.
arguments() {
  local names=$1 least=$2 most=$3 wrong=
  shift 3
  if (($# < least)) || [[ ${1:-} == -* ]]; then
    wrong=1
  elif [ "$most" = more ]; then
    shift "$least"
    if [[ ${1:-} != -* ]] && (($# % 2)); then wrong=1; fi
  elif (($# > most)); then
    wrong=1
  fi
  if [ -n "$wrong" ]; then
    fail 2 "usage: [DATA=... PRESET=paper|official|recommended|matched|cached|... PREC=... CFG=... SHOTS=..." \
      "OUTPUT=... TRAINER=... SEEDS=... OPTIONS=... PYTHON=...] bash $SHOWN$FOLDER/$(basename "$0") $names"
  fi
}

# quoted WORD: the word as a shell reads it.
quoted() {
  local mark="'" within="'\\''"
  if [[ $1 =~ ^[[:alnum:]_./:=,+-]+$ ]]; then
    printf %s "$1"
  else
    printf "'%s'" "${1//$mark/$within}"
  fi
}

# given DATASETS [NAME...]: what must stand before a command that we print, so that it does there what it does here:
# NAME=VALUE for each of these and the common variables that is not as our scripts set it by themselves.
given() {
  local name names="${*:2} OUTPUT DATA PYTHON SHOTS CFG PREC OPTIONS"
  case " $1 " in *" custom "*) names+=" IMAGES CLASSNAMES TEMPLATE" ;; esac
  for name in $names; do
    case $name=${!name:-} in
      "$name=" | "DATA=${SHOWN:-./}data" | "OUTPUT=${SHOWN:-./}output" | PRESET=recommended) ;;
      "TRAINER=${OWN:-SkipTuning}" | "PYTHON=$ROOT/.venv/bin/python" | PYTHON=python3) ;;
      *) printf '%s=%s ' "$name" "$(quoted "${!name}")" ;;
    esac
  done
}

# known WHAT NAMES CHOICES: stops unless each of the names is one of the choices.
known() {
  local name choices=" $(echo $3) "
  for name in $2; do
    if [[ $choices != *" $name "* ]]; then fail 2 "Error: there is no $1 $name; there are:${choices%" "}"; fi
  done
}

# check_names DATASETS: a misspelt name would only mean that a method has no such recipe, so TRAINERS, PRESETS, CFG and
# the datasets are looked up at the start.
check_names() {
  local presets
  presets=$(basename -s .yaml configs/trainers/*/*.yaml configs/overlays/*.yaml |
    sed -E 's/^vit_b16_//' | grep -vxE 'vit_b16|embedded|base2new|few_shot|xd' | sort -u)
  known dataset "$1" "$(basename -s .yaml configs/datasets/*.yaml)"
  known trainer "${TRAINERS:-}" "$(ls configs/trainers)"
  known preset "${PRESETS:-}" "recommended $presets"
  case $CFG in
    /*) [ -e "$CFG" ] || fail 2 "Error: there is no file $CFG; correct CFG" ;;
    *)
      if ! compgen -G "configs/trainers/*/$CFG.yaml" >/dev/null; then
        known CFG "$(sed -E 's/^(vit_b16|embedded)_//' <<<"$CFG")" "vit_b16 embedded $presets"
      fi ;;
  esac
}

# searching: the methods of choose.sh and curve.sh, TRAINERS or all; LPpp finds its own rate, two have none.
searching() {
  printf '%s\n' ${TRAINERS:-$(ls configs/trainers | grep -vx LPpp)} | grep -vxE 'TipAdapter|ZeroshotCLIP'
}

# trials: what choose.sh and curve.sh try, by the names of the folders: RATE with the recipe's epochs, RATExEPOCHS with
# others.
trials() {
  local epochs rate
  for epochs in ${EPOCHS:-recipe}; do
    for rate in ${RATES:-$SEARCHED}; do echo "${rate}x$epochs"; done
  done | sed s/xrecipe$//
}

# for_all_methods DATASET: how choose.sh, compare.sh and curve.sh begin. Sets shared_recipe, the preset by which all
# methods have the same batches and epochs, and EPOCHS.
for_all_methods() {
  arguments DATASET 1 1 "$@"
  check_names "$1"
  FOLDER=scripts/protocols
  shared_recipe=matched
  if [ "$1" = emoji ]; then shared_recipe=recommended EPOCHS=${EPOCHS-6 12}; fi
  EPOCHS=${EPOCHS:-}
  if [[ $EPOCHS == *[!0-9\ ]* ]]; then fail 2 "Error: EPOCHS are whole numbers, such as '6 12', not '$EPOCHS'"; fi
  trap 'printf "\nStopped; give the same command again to go on from here.\n" >&2; exit 130' INT
}

# sweep PROTOCOL [DATASET ...]: sets protocol, datasets and numbers (of shots) for list.sh and sweeps/runs.sh.
sweep() {
  arguments "base2new|few_shot|xd [DATASET ...]" 1 999 "$@"
  protocol=$1
  shift
  case $protocol in
    base2new) datasets=${*:-imagenet $TARGETS} numbers=${SHOTS:-} ;;
    few_shot) datasets=${*:-imagenet $TARGETS} numbers=${SHOTS:-1 2 4 8 16} ;;
    xd) datasets=${*:-$TARGETS $VARIANTS} numbers=${SHOTS:-} ;;
    *) fail 2 "Error: there is no protocol $protocol; choose base2new, few_shot or xd" ;;
  esac
  check_names "$datasets"
}

# recipe PROTOCOL DATASET: sets files (what train.py merges: the method's own file, the protocol's, the preset's) and
# cfg (their name in the output folder). A method without an embedded.yaml has rows for the embedded model in
# vit_b16.yaml.
recipe() {
  local own model=vit_b16 preset=${PRESET:-} suffix=_$1 file shared
  if [ "$preset" = recommended ]; then preset=; fi
  if [ "$1" = base2new ]; then suffix=; fi
  if [ "$2" = emoji ] && [ "$1" != xd ]; then model=embedded suffix=; fi
  own=configs/trainers/$TRAINER/$model.yaml
  if [ -n "$CFG" ]; then
    suffix=
    case $CFG in
      /*) own=$CFG model=$(basename "${CFG%.yaml}") ;;
      *) own=configs/trainers/$TRAINER/$CFG.yaml model=$CFG ;;
    esac
    # A whole name, such as vit_b16_paper, is a file and a preset.
    if [[ ! -e $own && $CFG =~ ^(vit_b16|embedded)_(.+)$ ]]; then
      model=${BASH_REMATCH[1]} preset=${BASH_REMATCH[2]}
      own=configs/trainers/$TRAINER/$model.yaml
    fi
  fi
  cfg=$model${preset:+_$preset}$suffix
  files=("$own")
  if [[ $model = embedded && ! -e $own ]]; then
    files=("configs/trainers/$TRAINER/vit_b16.yaml" configs/overlays/embedded.yaml)
  fi
  files+=("configs/overlays/$1.yaml")
  if [ -n "$preset" ]; then
    file=configs/trainers/$TRAINER/$preset.yaml
    if [[ ! -e $file && -e configs/overlays/$preset.yaml ]]; then file=configs/overlays/$preset.yaml; fi
    files+=("$file")
  fi
}

# offered: whether the trainer has the recipe that `place` found. Without training there is nothing to match, LP++ takes
# all images in every step by definition, Skip Tuning's own recipe is what the others are matched with, and on the
# embedded model they all are.
offered() {
  case $TRAINER:$cfg in
    ZeroshotCLIP:*_matched* | TipAdapter:*_matched* | LPpp:*_matched* | SkipTuning:*_matched*) return 1 ;;
    *:embedded_matched*) return 1 ;;
  esac
  [ -e "${files[0]}" ] && [ -e "${files[${#files[@]} - 1]}" ] && found=1
}

# some_offered: stops if `offered` has found no recipe at all.
some_offered() {
  if [ -z "$found" ]; then
    fail 2 "Error: none of these methods has such a recipe: TRAINERS=${TRAINERS:-} PRESETS=${PRESETS:-} CFG=$CFG"
  fi
}

# place STAGE DATASET SEED: sets shots, what `recipe` sets, folder (where the run leaves its files), model (the folder
# of the training that it tests) and told (the settings that the folder's name doesn't tell).
place() {
  local name
  case $2 in
    emoji) shots=${SHOTS:-4} ;;  # all it has
    *) shots=${SHOTS:-16} ;;
  esac
  case $1 in
    base2new_*) recipe base2new "$2" ;;
    few_shot) recipe few_shot "$2" ;;
    xd_*) recipe xd "$2" ;;
  esac
  case $1 in
    base2new_train) folder=base2new/train_base/$2/shots_$shots/$TRAINER/$cfg ;;
    base2new_test) folder=base2new/test_new/$2/shots_$shots/$TRAINER/$cfg ;;
    few_shot) folder=few_shot/$2/$TRAINER/${cfg}_${shots}shots ;;
    xd_train) folder=imagenet/$TRAINER/${cfg}_${shots}shots ;;
    xd_test) folder=evaluation/$TRAINER/${cfg}_${shots}shots/$2 ;;
  esac
  folder=$OUTPUT/$folder/seed$3
  case $1 in
    base2new_test) model=$OUTPUT/base2new/train_base/$2/shots_$shots/$TRAINER/$cfg/seed$3 ;;
    xd_test) model=$OUTPUT/imagenet/$TRAINER/${cfg}_${shots}shots/seed$3 ;;
    *) model= ;;
  esac
  told=
  for name in CFG PREC OPTIONS IMAGES CLASSNAMES TEMPLATE; do
    case $2:$name in
      custom:* | *:CFG | *:PREC | *:OPTIONS) told+=${!name:+" $name=${!name}"} ;;
    esac
  done
}

# same_settings [WORD...]: whether the run in $folder was made with the settings of now and these words for train.py.
same_settings() {
  local then=
  if [ -e "$folder/settings.txt" ]; then then=$(<"$folder/settings.txt"); fi
  [ "$then" = "$told${*:+ $*}" ]
}

# finished [WORD...]: whether the run in $folder is over, by the same settings and words for train.py, and neither a
# config nor the model that it tests is newer. train.py knows better, but takes seconds to start.
finished() {
  local file
  [ -e "$folder/result.json" ] || return 1
  newest=${newest:-$(find configs -name '*.yaml' -exec ls -t {} + | sed -n 1p)}  # found once for all runs
  for file in "$newest" "${files[@]}" ${model:+"$model/result.json"}; do
    if [ "$file" -nt "$folder/result.json" ]; then return 1; fi
  done
  same_settings "$@"
}

# note [WORD...]: keeps in $folder what `same_settings` compares.
note() {
  if [ -n "$told$*" ]; then
    # train.py says it where nothing can be written.
    { mkdir -p "$folder" && echo "$told${*:+ $*}" >"$folder/settings.txt"; } 2>/dev/null || true
  else
    rm -f "$folder/settings.txt"
  fi
}

# run STAGE DATASET SEED [FLAG...] [KEY VALUE...]: one call of train.py, which skips a finished run and resumes an
# unfinished one.
run() {
  local stage=$1 dataset=$2 seed=$3 classes=all root=$DATA first= extra shots cfg folder model told files words word
  local before= noted= status=0
  shift 3
  extra=$*
  case $stage in
    base2new_train) classes=base ;;
    base2new_test) classes=new first="base2new_train.sh $dataset $seed" ;;
    xd_test) first="xd_train.sh $seed" ;;
  esac
  if [ "$dataset" = custom ]; then root=$OUTPUT; fi  # the folder with the images is only read: their split is kept here
  place "$stage" "$dataset" "$seed"
  words=(--root "$root" --seed "$seed" --trainer "$TRAINER" --dataset-config-file "configs/datasets/$dataset.yaml")
  words+=(--config-file "${files[@]}" --output-dir "$folder")
  if [ -n "$model" ]; then
    if [ ! -e "$model/result.json" ]; then
      fail 1 "Error: no finished training in $model; run this first, with the same settings: bash $SHOWN$FOLDER/$first"
    fi
    words+=(--eval-only --model-dir "$model")
  fi
  if [[ ${1:-} == -* ]]; then  # flags stand before pairs
    words+=("$@")
    shift $#
  fi
  if [ "$dataset" = custom ]; then
    words+=(DATASET.IMAGES "$IMAGES" DATASET.CLASSNAMES "$CLASSNAMES" DATASET.TEMPLATE "${TEMPLATE:-}")
  fi
  words+=(DATASET.NUM_SHOTS "$shots" DATASET.SUBSAMPLE_CLASSES "$classes")
  if [ -n "$PREC" ]; then words+=("TRAINER.$(tr a-z A-Z <<<"$TRAINER").PREC" "$PREC"); fi
  if [[ $OPTIONS == *[![:space:]]* ]]; then
    xargs true <<<"$OPTIONS" 2>/dev/null || fail 2 "Error: a quote is not closed in OPTIONS: $OPTIONS"
    while IFS= read -r word; do words+=("$word"); done < <(xargs printf '%s\n' <<<"$OPTIONS")
  fi
  if ! "$PYTHON" -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("torch"))' 2>/dev/null; then
    fail 2 "Error: $PYTHON is no Python with PyTorch; set PYTHON to one that has what requirements.txt lists"
  fi
  # Settings stand there before the result, which others may read as soon as it is there. A run that fails takes its
  # own back: in a folder where another run is at work they would be wrong.
  if [ ! -e "$folder/result.json" ]; then
    before=$(cat "$folder/settings.txt" 2>/dev/null) || true
    note "$extra"
    noted=1
  fi
  "$PYTHON" train.py "${words[@]}" "$@" || status=$?
  if [ -e "$folder/result.json" ]; then
    if ((status == 0)); then note "$extra"; fi
  elif [ -n "$noted" ]; then
    told=$before
    note
    rmdir "$folder" 2>/dev/null || true  # if it is empty
  fi
  if ((status)); then exit $status; fi
}

# attempt SCRIPT ARGUMENTS...: runs it and remembers it when it fails, so that the others still get their turn.
attempt() {
  local status=0 settings word line
  settings=$(given "$*" TRAINER PRESET)
  echo "== $settings$*"
  bash "$FOLDER/$1" "${@:2}" || status=$?
  if ((status == 130)); then exit 130; fi
  if ((status)); then
    line="  ${settings}bash $(quoted "$SHOWN$FOLDER/$1")"
    for word in "${@:2}"; do line+=" $(quoted "$word")"; done
    failed+=$line$'\n'
  fi
}

# base2new DATASET SEED: both halves of base-to-new, as far as they are not finished.
base2new() {
  local stage shots cfg folder model told files
  for stage in base2new_train base2new_test; do
    place $stage "$1" "$2"
    if ! finished; then attempt $stage.sh "$1" "$2"; fi
  done
}

# report PROGRAM FOLDER...: its tables of each folder, then what failed; the exit code says whether all is there.
report() {
  local status=0 folder
  for folder in "${@:2}"; do "$PYTHON" $1 "$folder" || status=1; done
  if [ -z "$failed" ]; then exit $status; fi
  printf 'These runs failed:\n%s' "$failed" >&2
  exit 1
}
