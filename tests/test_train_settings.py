"""train.py: which settings win."""

from pathlib import Path

import pytest

import train
from dassl.utils import UserError

ROOT = Path(__file__).parents[1]
DATASET_FILE = ["--dataset-config-file", str(ROOT / "configs/datasets/emoji.yaml")]


def configured(*argv):
    return train.configure(train.parse([str(word) for word in argv]))[0]


@pytest.fixture
def yaml_file(tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text("SEED: 7\nOUTPUT_DIR: from_yaml\nOPTIM:\n  MAX_EPOCH: 3\n")
    return path


def test_seed_is_1_unless_yaml_or_flag_say_otherwise(yaml_file):
    assert configured().SEED == 1
    assert configured("--config-file", yaml_file).SEED == 7
    assert configured("--config-file", yaml_file, "--seed", 0).SEED == 0


def test_key_value_pairs_beat_flags_and_flags_beat_yaml(yaml_file):
    cfg = configured("--config-file", yaml_file, "--output-dir", "from_flag", "OPTIM.MAX_EPOCH", 5)
    assert (cfg.OUTPUT_DIR, cfg.OPTIM.MAX_EPOCH) == ("from_flag", 5)
    assert configured("--output-dir", "from_flag", "OUTPUT_DIR", "from_pair").OUTPUT_DIR == "from_pair"


def test_config_files_are_merged_in_their_order_and_pairs_may_follow_them(yaml_file, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text("SEED: 8\nVERBOSE: False\n")
    cfg = configured("--config-file", yaml_file, other, "OPTIM.LR", "0.5")
    assert (cfg.SEED, cfg.VERBOSE, cfg.OUTPUT_DIR, cfg.OPTIM.LR) == (8, False, "from_yaml", 0.5)
    assert configured("--config-file", other, yaml_file).SEED == 7
    assert configured("--config-file", yaml_file, "DATASET.CLASSNAMES", "names.yaml").DATASET.CLASSNAMES == "names.yaml"


def test_overlays_decide_which_rows_hold_and_more_conditions_win(tmp_path):
    (tmp_path / "own.yaml").write_text(
        "SEED: 2\nOVERRIDES: {few_shot+Emoji: {SEED: 5}, few_shot: {SEED: 4, VERBOSE: False}, xd: {SEED: 6}}\n"
    )
    (tmp_path / "few_shot.yaml").write_text("PROTOCOL: few_shot\nOVERRIDES: {few_shot: {OPTIM: {MAX_EPOCH: 3}}}\n")
    own = ["--config-file", tmp_path / "own.yaml"]
    assert configured(*own).SEED == 2
    cfg = configured(*own, tmp_path / "few_shot.yaml")
    assert (cfg.PROTOCOL, cfg.SEED, cfg.VERBOSE, cfg.OPTIM.MAX_EPOCH) == ("few_shot", 4, False, 3)
    assert configured(*own, tmp_path / "few_shot.yaml", *DATASET_FILE).SEED == 5
    assert configured(*own, "PROTOCOL", "xd").SEED == 6


def test_a_tilde_is_the_home_folder_in_every_path(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "some.yaml").write_text("DATASET: {IMAGES: ~/images}\n")
    cfg = configured("--config-file", "~/some.yaml", "--output-dir=~/o", "--root=~/d", "DATASET.CLASSNAMES", "~/n.yaml")
    paths = cfg.OUTPUT_DIR, cfg.DATASET.ROOT, cfg.DATASET.IMAGES, cfg.DATASET.CLASSNAMES
    assert paths == tuple(str(tmp_path / name) for name in ("o", "d", "images", "n.yaml"))


def test_seed_minus_1_is_drawn_once_for_an_output_folder(tmp_path):
    argv = ["--seed", -1, "--output-dir"]
    drawn = [configured(*argv, tmp_path / "new").SEED for _ in range(3)]
    assert min(drawn) >= 0 and len(set(drawn)) == 3
    (tmp_path / "config.yaml").write_text("SEED: 123\n")
    assert configured(*argv, tmp_path).SEED == 123
    (tmp_path / "config.yaml").write_text("- no options\n")
    with pytest.raises(UserError, match="another --output-dir"):
        configured(*argv, tmp_path)


def test_trainer_yaml_beats_dataset_yaml(yaml_file, tmp_path):
    other = tmp_path / "dataset.yaml"
    other.write_text("SEED: 8\nVERBOSE: False\n")
    cfg = configured("--config-file", yaml_file, "--dataset-config-file", other)
    assert (cfg.SEED, cfg.VERBOSE) == (7, False)


def test_what_a_file_has_for_the_dataset_asked_for_beats_the_file_and_the_command_line_beats_both(tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text("OPTIM: {MAX_EPOCH: 9}\nOVERRIDES: {Emoji: {OPTIM: {MAX_EPOCH: 3}, SEED: 4}, 8shots: {SEED: 5}}\n")
    cfg = configured("--config-file", path, *DATASET_FILE)
    assert (cfg.OPTIM.MAX_EPOCH, cfg.SEED) == (3, 4)
    cfg = configured("--config-file", path, *DATASET_FILE, "--seed", 6, "OPTIM.MAX_EPOCH", 2)
    assert (cfg.OPTIM.MAX_EPOCH, cfg.SEED) == (2, 6)
    assert configured("--config-file", path, "DATASET.NUM_SHOTS", 8).SEED == 5


def test_flags_reach_their_config_keys_as_they_are_written():
    flags = "--root 2024 --resume r --trainer T --backbone ViT-B/32 --head H --transforms a b --source-domains s"
    cfg = configured(*flags.split(), "--target-domains", "t")
    assert (cfg.DATASET.ROOT, cfg.RESUME, cfg.TRAINER.NAME) == ("2024", "r", "T")
    assert (cfg.MODEL.BACKBONE.NAME, cfg.MODEL.HEAD.NAME) == ("ViT-B/32", "H")
    assert (cfg.INPUT.TRANSFORMS, cfg.DATASET.SOURCE_DOMAINS) == (("a", "b"), ("s",))
    assert cfg.DATASET.TARGET_DOMAINS == ("t",)


def test_root_is_the_data_variable_or_the_data_folder(monkeypatch):
    monkeypatch.delenv("DATA", raising=False)
    assert configured().DATASET.ROOT == "./data"
    monkeypatch.setenv("DATA", "/elsewhere")
    assert configured().DATASET.ROOT == "/elsewhere"
    assert configured("--root", "here").DATASET.ROOT == "here"


def test_device_cpu_switches_cuda_off():
    assert configured("--device", "cpu").USE_CUDA is False
    assert configured("--device", "cuda").USE_CUDA is True


def test_pixels_are_what_the_backbone_needs_where_nothing_else_is_set():
    cfg = configured("--backbone", "ViT-XS/16-icons")
    assert cfg.INPUT.SIZE == (64, 64)
    assert cfg.INPUT.PIXEL_MEAN == [0.48145466, 0.4578275, 0.40821073]


@pytest.mark.parametrize(("key", "value"), [("SIZE", "(32, 32)"), ("PIXEL_STD", "[0.5, 0.5, 0.5]")])
def test_pixels_that_the_backbone_was_not_made_for_stop_the_run(key, value):
    with pytest.raises(UserError, match=rf"INPUT.{key} is .*: ViT-XS/16-icons needs INPUT.{key} "):
        configured("--backbone", "ViT-XS/16-icons", f"INPUT.{key}", value)
