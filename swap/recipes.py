"""Configuration files, scripts and the command that trains, in the words of a fork."""

import re

import yaml

from dassl.config.config import read_files

from .fork import FLAGS, HERE, dataset_file

RECIPES = HERE / "configs/trainers/SkipTuning"
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
RECIPE=configs/trainers/{trainer}/${{CFG}}
if [ -e "${{RECIPE}}/${{DATASET}}.yaml" ]; then RECIPE=${{RECIPE}}/${{DATASET}}; fi  # has values of its own
{dataset}exec "${{PYTHON:-python}}" {train} --root "${{DATA:-./data}}" --seed "${{SEED}}" --trainer {trainer} {flags}\\
  --dataset-config-file "{file}" --config-file "${{RECIPE}}.yaml" \\
  --output-dir "{output}" {model}\\
  DATASET.NUM_SHOTS "${{SHOTS}}" DATASET.SUBSAMPLE_CLASSES {classes} {options}"$@"
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


def recipes(name):
    """{path in the codebase: bytes}: each recipe as one plain yacs file, and one more for each dataset that differs."""
    files = {}
    for path in sorted(RECIPES.glob("vit_b16*.yaml")):
        text, tree = path.read_text(encoding="utf-8"), {}
        for _, layer in read_files(path):
            merge(tree, layer)
        tree["OPTIM"]["STAGED_LR"] = False  # DePT's default is True, for layers of its own
        rows = tree.pop("OVERRIDES", {})
        header = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
        files[f"configs/trainers/{name}/{path.name}"] = write_yaml(header, tree, name)
        for dataset, row in rows.items():
            other = yaml.safe_load(yaml.safe_dump(tree))
            merge(other, row)
            stem = dataset_stem(dataset)
            files[f"configs/trainers/{name}/{path.stem}/{stem}.yaml"] = write_yaml(
                f"# {path.name} with what {dataset} has of its own\n", other, name
            )
    return files


def write_yaml(header, tree, name):
    tree = {**tree, "TRAINER": {name.upper(): tree["TRAINER"]["SKIPTUNING"]}}
    return (header + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)).encode()


def merge(tree, update):
    for key, value in update.items():
        if isinstance(value, dict):
            merge(tree.setdefault(key, {}), value)
        else:
            tree[key] = value


def dataset_stem(name):
    """ImageNet -> imagenet, the name of its file in configs/datasets/, which the family shares."""
    for path in sorted((HERE / "configs/datasets").glob("*.yaml")):
        if yaml.safe_load(path.read_text(encoding="utf-8"))["DATASET"]["NAME"] == name:
            return path.stem
    raise KeyError(name)


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
        model = f'--eval-only --model-dir "{trained[script]}" {last_epoch(fork)}'
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
        dataset="" if plain else FIND_DATASET,
        file="configs/datasets/${DATASET}.yaml" if plain else "${FILE}",
        output=layouts.get(script, fork.kind.layout).format(part=part, **words),
        model=model,
        classes=classes,
        options=f"{options} " if options else "",
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
        "DATASET.NUM_SHOTS 16 DATASET.SUBSAMPLE_CLASSES base",
        "" if file else "DATASET.NAME EuroSAT",
        options,
    ]
    return dataset, spell(fork, re.sub(r" +", " ", " ".join(parts)).strip())
