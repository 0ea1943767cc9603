"""Configuration files, scripts and the command that swap_in writes into a fork."""

import importlib
import re
import subprocess

import pytest
from yacs.config import CfgNode

import trainers
from dassl.config import get_cfg_default
from dassl.config.config import resolve
from swap import recipes
from tests.swap.skeletons import make_fork, run

OURS = recipes.CONFIGS


@pytest.mark.parametrize("preset", ["", *recipes.PRESETS])
def test_presets_become_files_that_plain_yacs_reads(preset, tmp_path):
    """Overlays and OVERRIDES are resolved: plain yacs comes to the options that our train.py comes to."""
    skip_tuning = importlib.import_module("trainers.skip_tuning")
    files = recipes.recipes("SkipTuning")
    for protocol, (suffix, _) in recipes.PROTOCOLS.items():
        stem = f"vit_b16{f'_{preset}' if preset else ''}{suffix}"
        text = files[f"configs/trainers/SkipTuning/{stem}.yaml"]
        assert text.startswith(b"# ")
        (tmp_path / "file.yaml").write_bytes(text)
        for dataset, name in [("EuroSAT", "eurosat"), ("ImageNet", "imagenet"), ("Food101", "food101")]:
            cfg = CfgNode(get_cfg_default())
            cfg.OPTIM.STAGED_LR = True  # DePT's default
            cfg.TEST.FINAL_MODEL = "best_val"  # HiCroPL's
            skip_tuning.extend_cfg(cfg)
            cfg.merge_from_file(str(tmp_path / "file.yaml"))
            cfg.merge_from_list(recipes.presets()[stem].own.get(name, "").split())
            ours = get_cfg_default()
            trainers.extend_cfg(ours)
            ours.merge_from_file(str(OURS / "trainers/SkipTuning/vit_b16.yaml"))
            ours.merge_from_file(str(OURS / f"overlays/{protocol}.yaml"))
            if preset:
                ours.merge_from_file(str(OURS / f"trainers/SkipTuning/{preset}.yaml"))
            ours.DATASET.NAME = dataset
            resolve(ours)
            for node in ("OPTIM", "INPUT", "DATALOADER", "MODEL", "TRAIN", "TEST"):
                assert cfg[node] == ours[node], (stem, dataset)
            assert cfg.TRAINER.SKIPTUNING == ours.TRAINER.SKIPTUNING, (stem, dataset)


def shown(root, script, *arguments, **variables):
    """The call of python that a script comes to, and what it says on stderr."""
    (root / "bin").mkdir(exist_ok=True)
    python = root / "bin/python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)
    command = ["bash", str(root / f"scripts/skip/{script}.sh"), *arguments]
    environment = {"PATH": f"{root}/bin:/usr/bin:/bin", **variables}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    return done.stdout.splitlines(), done.stderr


ARGUMENTS = {script: ["eurosat", "1"] if "DATASET" in row[0] else ["1"] for script, row in recipes.SCRIPTS.items()}


@pytest.mark.parametrize("script", ARGUMENTS)
def test_scripts_pass_on_extra_options_and_ask_for_what_is_missing(script, tmp_path):
    _, root = make_fork(tmp_path, "CoOp")
    assert run(root) == 0
    call, error = shown(root, script, *ARGUMENTS[script], "OPTIM.LR", "a b", SHOTS="4", PRESET="paper")
    assert not error and call[-2:] == ["OPTIM.LR", "a b"], error
    dataset = "imagenet" if script == "xd_train" else "eurosat"
    assert f"configs/datasets/{dataset}.yaml" in call and call[call.index("DATASET.NUM_SHOTS") + 1] == "4"
    suffix = {"few": "_few_shot", "xd_": "_xd"}.get(script[:3], "")
    assert f"configs/trainers/SkipTuning/vit_b16_paper{suffix}.yaml" in call
    assert (root / f"configs/trainers/SkipTuning/vit_b16_paper{suffix}.yaml").exists()
    assert ("--eval-only" in call) == script.endswith("_test")
    call, error = shown(root, script, *ARGUMENTS[script][:-1])
    assert not call and ARGUMENTS[script][-1:] and "SEED" in error


def test_a_dataset_gets_the_options_that_a_recipe_has_for_it(tmp_path):
    _, root = make_fork(tmp_path, "CoOp")
    assert run(root) == 0
    for dataset, preset, epochs in [("imagenet", "", ["5"]), ("imagenet", "paper", []), ("eurosat", "", [])]:
        call, _ = shown(root, "base2new_train", dataset, "1", PRESET=preset)
        assert [call[i + 1] for i, word in enumerate(call) if word == "OPTIM.MAX_EPOCH"] == epochs
    call, _ = shown(root, "few_shot", "food101", "1", "8", "OPTIM.MAX_EPOCH", "3")
    assert call[-4:] == ["OPTIM.MAX_EPOCH", "10", "OPTIM.MAX_EPOCH", "3"], "what the user asks for comes last"
    assert call[call.index("DATASET.NUM_SHOTS") + 1] == "8"


def test_scripts_and_command_follow_the_forks_layout_and_flags(tmp_path, capsys):
    for name, expected in {
        "CLAP": "--backbone ViT-B/16",
        "DePT": "outputs/base2new/train_base/SkipTuning/eurosat/shots16/vit_b16/seed1",
        "CoOp": "output/base2new/train_base/eurosat/shots_16/SkipTuning/vit_b16/seed1",
    }.items():
        path, root = make_fork(tmp_path / name, name)
        assert run(path) == 0
        assert expected in capsys.readouterr().out
        call, error = shown(root, "base2new_train", "eurosat", "1")
        call = " ".join(call)
        assert expected in call and "SUBSAMPLE_CLASSES base" in call, error
        assert "/test_new/" in (root / "scripts/skip/base2new_test.sh").read_text()


def test_flags_are_spelled_as_the_fork_spells_them(tmp_path, capsys):
    path, root = make_fork(tmp_path, "CoOp")
    text = (root / "train.py").read_text().replace('"--" + flag', '"--" + flag.replace("-", "_")')
    text = text.replace('("root", "output-dir", "config-file", "dataset-config-file", ', "(")
    flags = ["--dataset_root", "--output_dir", "--trainer_config", "--dataset_config"]
    text = text.replace(
        "    parser.add", "".join(f'    parser.add_argument("{flag}")\n' for flag in flags) + "    parser.add", 1
    )
    text = text.replace("    for flag", "    parser.add_argument('--eval_only')\n    for flag")
    (root / "train.py").write_text(text)
    assert run(path) == 0
    assert all(f" {flag} " in capsys.readouterr().out for flag in flags[:1])
    call, _ = shown(root, "xd_test", "eurosat", "1")
    assert {*flags, "--eval_only"} <= set(call) and not [word for word in call if word.startswith("--output-dir")]


@pytest.mark.parametrize(
    "place", ["configs/datasets/b2n/eurosat.yaml", "configs/sets/sseurosat.yaml", "", "configs/datasets/x.yaml"]
)
def test_the_dataset_s_file_is_looked_for(place, tmp_path, capsys):
    path, root = make_fork(tmp_path, "CoOp")
    file = root / "configs/datasets/eurosat.yaml"
    if place:
        (root / place).parent.mkdir(exist_ok=True)
        file.rename(root / place)
    else:
        file.unlink()
    assert run(path) == 0
    out = capsys.readouterr().out
    command = re.search(r"python train.py .*", out)[0]
    if place:
        assert f"--dataset-config-file {place} " in command
    else:
        assert "--dataset-config-file" not in command and "DATASET.NAME EuroSAT" in command
    call, error = shown(root, "base2new_train", "eurosat", "1")
    if "eurosat" in place:
        assert place in call
    else:
        assert not call and "no configuration file of the dataset eurosat" in error
