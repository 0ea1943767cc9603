"""Configuration files, scripts and the command that trains, in the words of a fork."""

import functools
import re
from typing import NamedTuple

import yaml

from dassl.config.config import Config, flatten, resolve
from dassl.utils.reading import read_yaml

from .fork import FLAGS, HERE, dataset_file

CONFIGS = HERE / "configs"
PRESETS = ("paper", "official", "cached")
PROTOCOLS = {
    "base2new": ("", "base2new_train.sh eurosat 1"),
    "few_shot": ("_few_shot", "few_shot.sh eurosat 1 16"),
    "xd": ("_xd", "xd_train.sh 1"),
}
SCRIPTS = {  # script: (arguments, SUBSAMPLE_CLASSES, suffix of the recipe, part of base-to-new)
    "base2new_train": ("DATASET SEED", "base", "", "train_base"),
    "base2new_test": ("DATASET SEED", "new", "", "test_new"),
    "few_shot": ("DATASET SEED [SHOTS]", "all", "_few_shot", ""),
    "xd_train": ("SEED", "all", "_xd", ""),
    "xd_test": ("DATASET SEED", "all", "_xd", ""),
}
SCRIPT = """#!/usr/bin/env bash
# usage: [DATA=...] [PRESET=paper|official|cached] [SHOTS=16] bash scripts/skip/{script}.sh {arguments} [KEY VALUE ...]
set -eu
cd "$(dirname "$0")/../.."
{read}
SHOTS=${{SHOTS:-16}}
CFG=${{CFG:-vit_b16${{PRESET:+_${{PRESET}}}}{suffix}}}
PAIRS=(DATASET.NUM_SHOTS "${{SHOTS}}"{classes}{options})
{dataset}case ${{1:-}} in  # flags stand before pairs
  -*) set -- "$@" "${{PAIRS[@]}}" ;;
  *) set -- "${{PAIRS[@]}}" "$@" ;;
esac
exec "${{PYTHON:-python}}" {train} --root "${{DATA:-./data}}" --seed "${{SEED}}" --trainer {trainer} {flags}\
  --dataset-config-file "{file}" --config-file "configs/trainers/{trainer}/${{CFG}}.yaml" \
  --output-dir "{output}" \
  {model}"$@"
"""
SHOTS_ARGUMENT = """if [[ ${1:-} =~ ^[0-9]+$ ]]; then
  SHOTS=$1
  shift
fi"""
FIND_DATASET = """FILE=$(find configs -path configs/trainers -prune -o -name "*${DATASET}.yaml" -print | sort | head -1)
: "${FILE:?no configuration file of the dataset ${DATASET} is below configs/}"
"""
FEW_SHOT = "output/few_shot/{dataset}/{trainer}/{cfg}_{shots}shots/seed{seed}"
XD_TRAIN = "output/imagenet/{trainer}/{cfg}_{shots}shots/seed{seed}"
XD_TEST = "output/evaluation/{trainer}/{cfg}_{shots}shots/{dataset}/seed{seed}"


class Recipe(NamedTuple):
    header: str  # comment lines
    tree: dict
    own: dict  # dataset: the KEY VALUE pairs that it has of its own
    suffix: str  # of the protocol


def recipes(name):
    """{path in the codebase: bytes}: each preset for each protocol as one plain yacs file."""
    files = {}
    for stem, recipe in presets().items():
        tree = {**recipe.tree, "TRAINER": {name.upper(): recipe.tree["TRAINER"]["SKIPTUNING"]}}
        text = recipe.header + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
        files[f"configs/trainers/{name}/{stem}.yaml"] = text.encode()
    return files


@functools.cache
def presets():
    """{name: Recipe}. Upstream's yacs knows neither overlays nor OVERRIDES, so both are resolved here."""
    templates = read_yaml(CONFIGS / "templates.yaml")["uses"]["skip_tuning"]
    datasets = {read_yaml(path)["DATASET"]["NAME"]: path.stem for path in (CONFIGS / "datasets").glob("*.yaml")}
    found = {}
    for preset in ("", *PRESETS):
        for protocol, (suffix, script) in PROTOCOLS.items():
            files = ["trainers/SkipTuning/vit_b16.yaml", f"overlays/{protocol}.yaml"]
            files += [f"trainers/SkipTuning/{preset}.yaml"] if preset else []
            tree, conditions = resolved(files, "")
            own = {}
            for dataset in sorted(conditions & set(datasets)):
                other = flatten(resolved(files, dataset)[0])
                pairs = [f"{key} {value}" for key, value in other.items() if flatten(tree).get(key) != value]
                if pairs:
                    own[datasets[dataset]] = " ".join(pairs)
            tree["OPTIM"]["STAGED_LR"] = False  # DePT's default is True, for layers of its own
            tree["TEST"] = {"FINAL_MODEL": "last_step"}  # HiCroPL's default is best_val
            tree["TRAINER"]["SKIPTUNING"]["TEMPLATES"] = templates
            command = f"{f'PRESET={preset} ' if preset else ''}bash scripts/skip/{script}"
            header = f"# Skip Tuning with ViT-B/16, {preset or 'recommended'}:\n#   {command}\n"
            found[f"vit_b16{f'_{preset}' if preset else ''}{suffix}"] = Recipe(header, tree, own, suffix)
    return found


def resolved(files, dataset):
    """Files of ours merged in order, with the rows of OVERRIDES that hold for a dataset -> (tree, all conditions)."""
    cfg = Config(new_allowed=True)
    cfg.PROTOCOL = cfg.PRESET = ""
    cfg.OVERRIDES = Config(new_allowed=True)
    cfg.DATASET = Config({"NAME": dataset, "NUM_SHOTS": -1})
    for file in files:
        cfg.merge_from_file(str(CONFIGS / file))
    conditions = {condition for key in cfg.OVERRIDES for condition in key.split("+")}
    resolve(cfg)
    for key in ("PROTOCOL", "PRESET", "OVERRIDES", "DATASET"):
        del cfg[key]
    return plain(cfg), conditions


def plain(node):
    return {key: plain(value) if isinstance(value, dict) else value for key, value in node.items()}


def own_values(suffix):
    """Shell lines that give a dataset the options that the recipes of a protocol have for it alone."""
    groups = {}  # (datasets, options): recipes
    for stem, recipe in presets().items():
        for options in sorted(set(recipe.own.values())) if recipe.suffix == suffix else ():
            datasets = " | ".join(dataset for dataset, pairs in recipe.own.items() if pairs == options)
            groups.setdefault((datasets, options), []).append(stem)
    lines = ""
    for (datasets, options), stems in groups.items():
        lines += f"case ${{DATASET}} in {datasets})\n  case ${{CFG}} in {' | '.join(stems)}) "
        lines += f"PAIRS+=({options}) ;; esac ;;\nesac\n"
    return lines


def scripts(fork, name, options):
    """{path in the codebase: bytes} of all scripts; options: KEY VALUE pairs that every run needs."""
    return {f"scripts/skip/{script}.sh": write_script(script, fork, name, options) for script in SCRIPTS}


def write_script(script, fork, name, options):
    arguments, classes, suffix, part = SCRIPTS[script]
    words = {key: f"${{{key.upper()}}}" for key in ("dataset", "shots", "cfg", "seed")} | {"trainer": name}
    layouts = {"few_shot": FEW_SHOT, "xd_train": XD_TRAIN, "xd_test": XD_TEST}
    trained = {
        "base2new_test": fork.kind.layout.format(part="train_base", **words),
        "xd_test": XD_TRAIN.format(**words),
    }
    model = ""
    if script in trained:
        model = f'--eval-only --model-dir "{trained[script]}" {last_epoch(fork)}\\\n  '
    needed = [word for word in arguments.split() if word.isalpha()]
    read = [f"{word}=${{{i}:?{arguments}}}" for i, word in enumerate(needed, 1)] + [f"shift {len(needed)}"]
    if script == "xd_train":
        read.append("DATASET=imagenet")
    if script == "few_shot":
        read.append(SHOTS_ARGUMENT)
    plain = any((fork.root / f"configs/datasets/{dataset}.yaml").exists() for dataset in ("eurosat", "imagenet"))
    text = SCRIPT.format(
        script=script,
        arguments=arguments,
        read="\n".join(read),
        suffix=suffix,
        trainer=name,
        train=fork.train,
        flags=f"{fork.kind.flags} " if fork.kind.flags else "",
        dataset=own_values(suffix) + ("" if plain else FIND_DATASET),
        file="configs/datasets/${DATASET}.yaml" if plain else "${FILE}",
        output=layouts.get(script, fork.kind.layout).format(part=part, **words),
        model=model,
        classes=f" DATASET.SUBSAMPLE_CLASSES {classes}" if fork.splits_classes else "",
        options=f" {options}" if options else "",
    )
    return spell(fork, text).encode()


def spell(fork, command):
    """A command in CoOp's words with the flags as this train.py spells them."""
    for flag in FLAGS:
        command = re.sub(rf"(?<=\s)--{flag}(?=\s)", fork.flag(flag) or f"--{flag}", command)
    return command


def last_epoch(fork):
    """What makes a train.py test the last epoch whose --load-epoch has another default."""
    return "" if fork.load_epoch == "None" else f"{fork.flag('load-epoch')} -1 "


def train_command(fork, name, options):
    """-> a dataset (EuroSAT, if it is there) and the command that trains its base classes in the codebase's root."""
    dataset, file = "eurosat", dataset_file(fork.root, "eurosat")
    if not file:
        others = sorted((fork.root / "configs/datasets").rglob("*.yaml"))
        if others:
            dataset, file = others[0].stem, others[0].relative_to(fork.root).as_posix()
    words = {"part": "train_base", "dataset": dataset, "shots": 16, "trainer": name, "cfg": "vit_b16", "seed": 1}
    parts = [
        f"python {fork.train} --root PATH/TO/DATASETS --seed 1 --trainer {name} {fork.kind.flags}",
        f"--dataset-config-file {file}" if file else "",
        f"--config-file configs/trainers/{name}/vit_b16.yaml --output-dir {fork.kind.layout.format(**words)}",
        f"DATASET.NUM_SHOTS 16{' DATASET.SUBSAMPLE_CLASSES base' if fork.splits_classes else ''}",
        "" if file else "DATASET.NAME EuroSAT",
        options,
    ]
    return dataset, spell(fork, re.sub(r" +", " ", " ".join(parts)).strip())
