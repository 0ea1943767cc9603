import pytest
from yacs.config import CfgNode

from dassl.config import clean_cfg, config_diff, get_cfg_default
from dassl.utils import UserError


def extended():
    cfg = get_cfg_default()
    cfg.TRAINER.COOP = CfgNode()
    cfg.TRAINER.COOP.N_CTX = 16
    cfg.TRAINER.COOP.CTX_INIT = ""
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"
    return cfg


def test_options_are_read_as_yacs_reads_them(tmp_path):
    cfg = extended()
    file = tmp_path / "a.yaml"
    file.write_text(
        'INPUT:\n  SIZE: (64, 64)\n  TRANSFORMS: ["normalize"]\nOPTIM:\n  LR: 2e-5\n  MAX_EPOCH: 3\n'
        "TRAINER:\n  COOP:\n    CTX_INIT: a photo of a\n"
    )
    cfg.merge_from_file(str(file))
    cfg.merge_from_list(["TRAINER.COOP.N_CTX", "4", "USE_CUDA", "False", "DATASET.NAME", "123"])
    assert cfg.INPUT.SIZE == (64, 64) and cfg.INPUT.TRANSFORMS == ("normalize",)
    assert cfg.OPTIM.LR == 2e-5 and cfg.USE_CUDA is False and cfg.DATASET.NAME == "123"
    assert (cfg.TRAINER.COOP.N_CTX, cfg.TRAINER.COOP.CTX_INIT) == (4, "a photo of a")


def test_a_whole_number_serves_where_a_float_is_expected():
    cfg = extended()
    cfg.merge_from_list(["OPTIM.LR", "1"])
    assert cfg.OPTIM.LR == 1.0 and isinstance(cfg.OPTIM.LR, float)


@pytest.mark.parametrize(
    "text, key, hint",
    [
        ("OPTIM:\n  LRATE: 1\n", "OPTIM.LRATE", "OPTIM.LR?"),
        ("TRAINER:\n  COOOP:\n    N_CTX: 4\n", "TRAINER.COOOP", "TRAINER.COOP.N_CTX"),
        ("OPTIM:\n  MAX_EPOCH: 2.5\n", "OPTIM.MAX_EPOCH", "int"),
        ("OPTIM: sgd\n", "OPTIM", "OPTIM.NAME"),
        ("SEED:\n  A: 1\n", "SEED", "int"),
    ],
)
def test_wrong_options_in_a_file_name_the_key_the_file_and_what_would_do(tmp_path, text, key, hint):
    file = tmp_path / "wrong.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        extended().merge_from_file(str(file))
    message = str(caught.value)
    assert key in message and "wrong.yaml" in message and hint in message and "\n" not in message


@pytest.mark.parametrize(
    "opts, parts",
    [
        (["TRAINER.COOP.NCTX", "4"], ["TRAINER.COOP.NCTX", "TRAINER.COOP.N_CTX?"]),
        (["OPTIM.LR", "fast"], ["OPTIM.LR", "float", "'fast'"]),
        (["OPTIM.MAX_EPOCH", "True"], ["OPTIM.MAX_EPOCH", "int", "bool"]),
        (["OPTIM.LR", "1", "SEED"], ["KEY VALUE", "'SEED'"]),
        (["SEED.X", "1"], ["SEED.X"]),
    ],
)
@pytest.mark.parametrize("kind", [UserError, KeyError, ValueError])
def test_wrong_options_on_the_command_line_name_the_key_and_what_would_do(opts, parts, kind):
    with pytest.raises(kind) as caught:
        extended().merge_from_list(opts)
    assert all(part in str(caught.value) for part in parts)


def test_unreadable_config_files_are_named(tmp_path):
    (tmp_path / "bad.yaml").write_text("a: [1")
    for name, kind in (("bad.yaml", ValueError), ("nowhere.yaml", FileNotFoundError)):
        with pytest.raises(kind, match=name) as caught:
            extended().merge_from_file(str(tmp_path / name))
        assert isinstance(caught.value, UserError)


def test_the_diff_holds_only_what_differs():
    cfg = extended()
    cfg.merge_from_list(["OPTIM.LR", "0.1", "OPTIM.MAX_EPOCH", "10"])
    assert config_diff(cfg, extended()) == "OPTIM.LR: 0.1 (default: 0.0003)"
    assert config_diff(extended(), extended()) == ""
    assert "TRAINER.COOP.N_CTX: 16 (no default)" in config_diff(extended(), get_cfg_default())


def test_defaults_are_a_fresh_copy_and_clean_cfg_drops_other_methods():
    first = extended()
    assert "COOP" not in get_cfg_default().TRAINER
    first.TRAINER.OTHER = CfgNode({"A": 1})
    clean_cfg(first, "CoOp")
    assert sorted(first.TRAINER) == ["COOP", "NAME"]
    first.freeze()
    with pytest.raises(AttributeError):
        first.SEED = 2
