import pytest
from yacs.config import CfgNode

from dassl.config import clean_cfg, config_diff, get_cfg_default, resolve
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


# Files that are based on others ----------------------------------------------------------------------


@pytest.fixture
def write(tmp_path):
    """write(name, text) -> the path of a config file in a folder of its own."""

    def write(name, text):
        path = tmp_path / "configs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    return write


def read(path):
    cfg = extended()
    cfg.merge_from_file(path)
    return cfg


def test_a_file_overrides_the_one_it_is_based_on(write):
    write("base.yaml", "OPTIM:\n  LR: 0.5\n  MAX_EPOCH: 7\n")
    cfg = read(write("a.yaml", "_BASE_: base.yaml\nOPTIM:\n  LR: 0.25\n"))
    assert (cfg.OPTIM.LR, cfg.OPTIM.MAX_EPOCH) == (0.25, 7)
    assert "_BASE_" not in cfg


def test_of_several_bases_the_later_wins_wherever_the_key_stands(write):
    write("one.yaml", "OPTIM:\n  LR: 1.0\n  MAX_EPOCH: 1\n  GAMMA: 1.0\n")
    write("two.yaml", "OPTIM:\n  MAX_EPOCH: 2\n  GAMMA: 2.0\n")
    cfg = read(write("a.yaml", "OPTIM:\n  GAMMA: 3.0\n_BASE_: [one.yaml, two.yaml]\n"))
    assert (cfg.OPTIM.LR, cfg.OPTIM.MAX_EPOCH, cfg.OPTIM.GAMMA) == (1.0, 2, 3.0)


def test_bases_have_bases_each_relative_to_its_own_file(write, tmp_path, monkeypatch):
    write("common/root.yaml", "SEED: 1\nOPTIM:\n  LR: 1.0\n  MAX_EPOCH: 1\n")
    write("common/middle.yaml", "_BASE_: root.yaml\nOPTIM:\n  LR: 2.0\n  MAX_EPOCH: 2\n")
    path = write("methods/a.yaml", "_BASE_: ../common/middle.yaml\nOPTIM:\n  MAX_EPOCH: 3\n")
    monkeypatch.chdir(tmp_path)
    cfg = read(path)
    assert (cfg.SEED, cfg.OPTIM.LR, cfg.OPTIM.MAX_EPOCH) == (1, 2.0, 3)


def test_two_files_may_be_based_on_the_same_one(write):
    write("root.yaml", "OPTIM:\n  LR: 1.0\n  MAX_EPOCH: 1\n")
    write("one.yaml", "_BASE_: root.yaml\nOPTIM:\n  LR: 2.0\n")
    write("two.yaml", "_BASE_: root.yaml\n")
    assert read(write("a.yaml", "_BASE_: [two.yaml, one.yaml]\n")).OPTIM.LR == 2.0


@pytest.mark.parametrize(("base", "asks"), [("a.yaml", "a.yaml"), ("b.yaml", "b.yaml")])
def test_a_file_based_on_itself_is_an_error_that_names_who_asks(write, base, asks):
    write("b.yaml", "_BASE_: a.yaml\n")
    with pytest.raises(UserError, match="is based on itself") as caught:
        read(write("a.yaml", f"_BASE_: {base}\n"))
    assert asks in str(caught.value).split("take it out of _BASE_ in")[1]


def test_a_missing_base_names_itself_and_who_asks(write):
    write("b.yaml", "_BASE_: nowhere.yaml\n")
    with pytest.raises(FileNotFoundError) as caught:
        read(write("a.yaml", "_BASE_: b.yaml\n"))
    message = str(caught.value)
    assert isinstance(caught.value, UserError)
    assert "nowhere.yaml" in message and message.split("which")[1].count("b.yaml") == 1 and "a.yaml" not in message


def test_a_wrong_option_in_a_base_names_the_base(write):
    write("b.yaml", "OPTIM:\n  LRATE: 1\n")
    with pytest.raises(UserError, match="OPTIM.LRATE") as caught:
        read(write("a.yaml", "_BASE_: b.yaml\n"))
    assert "b.yaml" in str(caught.value) and "a.yaml" not in str(caught.value)


@pytest.mark.parametrize("value", ["3", "[1]", "{a: b}", "[[a.yaml]]"])
def test_bases_that_are_no_paths_are_one_clear_error(write, value):
    with pytest.raises(UserError, match="_BASE_") as caught:
        read(write("a.yaml", f"_BASE_: {value}\n"))
    assert "a.yaml" in str(caught.value)


@pytest.mark.parametrize("value", ["", "[]"])
def test_no_base_is_no_error(write, value):
    assert read(write("a.yaml", f"_BASE_: {value}\nSEED: 5\n")).SEED == 5


# Nodes that take new keys ----------------------------------------------------------------------------


@pytest.fixture
def open_cfg():
    cfg = extended()
    cfg.TRAINER.COOP.EPOCHS = CfgNode(new_allowed=True)
    return cfg


def test_an_open_node_takes_new_keys_from_files_and_from_the_command_line(open_cfg, write):
    open_cfg.merge_from_file(write("a.yaml", "TRAINER:\n  COOP:\n    EPOCHS:\n      ImageNet: 5\n      Food101: 5\n"))
    open_cfg.merge_from_list(["TRAINER.COOP.EPOCHS.SUN397", "10", "TRAINER.COOP.EPOCHS.Food101", "7"])
    assert open_cfg.TRAINER.COOP.EPOCHS == {"ImageNet": 5, "Food101": 7, "SUN397": 10}
    assert "TRAINER.COOP.EPOCHS.SUN397: 10 (no default)" in config_diff(open_cfg, extended())


def test_an_open_node_merges_with_what_a_base_put_there(open_cfg, write):
    write("b.yaml", "TRAINER:\n  COOP:\n    EPOCHS:\n      ImageNet: 5\n      Food101: 5\n")
    open_cfg.merge_from_file(write("a.yaml", "_BASE_: b.yaml\nTRAINER:\n  COOP:\n    EPOCHS:\n      Food101: 6\n"))
    assert open_cfg.TRAINER.COOP.EPOCHS == {"ImageNet": 5, "Food101": 6}


def test_a_new_key_keeps_the_type_it_got_first(open_cfg):
    open_cfg.merge_from_list(["TRAINER.COOP.EPOCHS.ImageNet", "5"])
    with pytest.raises(UserError, match="TRAINER.COOP.EPOCHS.ImageNet .* must be a int"):
        open_cfg.merge_from_list(["TRAINER.COOP.EPOCHS.ImageNet", "many"])


@pytest.mark.parametrize("text", ["{}", "{} texture.", "a photo of a {}.", "{a}"])
def test_a_prompt_in_an_open_node_stays_text(open_cfg, write, text):
    open_cfg.merge_from_list(["TRAINER.COOP.EPOCHS.DTD", text])
    open_cfg.merge_from_file(write("a.yaml", f'TRAINER:\n  COOP:\n    EPOCHS:\n      EuroSAT: "{text}"\n'))
    epochs = open_cfg.TRAINER.COOP.EPOCHS
    assert [epochs.DTD, epochs.EuroSAT] == [text, text]


def test_open_nodes_stay_open_in_copies_and_do_not_open_their_neighbours(open_cfg):
    copy = open_cfg.clone()
    copy.merge_from_list(["TRAINER.COOP.EPOCHS.DTD", "3"])
    assert copy.TRAINER.COOP.EPOCHS.DTD == 3 and not open_cfg.TRAINER.COOP.EPOCHS
    with pytest.raises(UserError, match="Unknown config key TRAINER.COOP.EPOCH on"):
        copy.merge_from_list(["TRAINER.COOP.EPOCH", "3"])
    with pytest.raises(UserError, match="Unknown config key TRAINER.COOP.EPOCHS.DTD.X on"):
        copy.merge_from_list(["TRAINER.COOP.EPOCHS.DTD.X", "3"])


def test_a_group_in_an_open_node_is_a_node_as_in_yacs(open_cfg, write):
    open_cfg.merge_from_file(write("a.yaml", "TRAINER:\n  COOP:\n    EPOCHS:\n      DTD:\n        A: 1\n"))
    assert isinstance(open_cfg.TRAINER.COOP.EPOCHS.DTD, CfgNode)
    open_cfg.merge_from_list(["TRAINER.COOP.EPOCHS.DTD.A", "2"])
    assert open_cfg.TRAINER.COOP.EPOCHS.DTD.A == 2 and "A: 2" in open_cfg.dump()


def test_a_group_in_an_open_node_takes_new_keys_at_every_depth(open_cfg, write):
    write("b.yaml", "TRAINER:\n  COOP:\n    EPOCHS:\n      DTD: {A: {B: 2e-5}}\n")
    tree = "{A: {B: 0.5, C: 3}, D: {E: 4}}"
    open_cfg.merge_from_file(write("a.yaml", f"_BASE_: b.yaml\nTRAINER:\n  COOP:\n    EPOCHS:\n      DTD: {tree}\n"))
    assert open_cfg.TRAINER.COOP.EPOCHS == {"DTD": {"A": {"B": 0.5, "C": 3}, "D": {"E": 4}}}


def test_what_an_open_node_took_is_read_back_from_the_dump(open_cfg, write):
    open_cfg.merge_from_list(["TRAINER.COOP.EPOCHS.DTD", "{} texture."])
    again = extended()
    again.TRAINER.COOP.EPOCHS = CfgNode(new_allowed=True)
    again.merge_from_file(write("dump.yaml", open_cfg.dump()))
    assert again.TRAINER.COOP == open_cfg.TRAINER.COOP


# Options that have other values for a dataset, shots, a protocol or a preset ------------------------------


OVERRIDES = """
OPTIM: {MAX_EPOCH: 9}
OVERRIDES:
  EuroSAT+8shots+matched: {OPTIM: {MAX_EPOCH: 8}}
  EuroSAT+8shots: {OPTIM: {MAX_EPOCH: 5}}
  4shots: {OPTIM: {MAX_EPOCH: 1, LR: 0.1}}
  8shots: {OPTIM: {MAX_EPOCH: 2, LR: 0.2, GAMMA: 0.5}}
  EuroSAT: {OPTIM: {MAX_EPOCH: 3, LR: 0.3}}
  DTD: {OPTIM: {MAX_EPOCH: 4}}
  matched: {OPTIM: {MAX_EPOCH: 6}}
  few_shot+matched: {OPTIM: {MAX_EPOCH: 7}}
"""


@pytest.mark.parametrize(
    ("options", "epochs", "lr", "gamma"),
    [
        (["EuroSAT", 8, "", ""], 5, 0.3, 0.5),  # two conditions win over one, and of one each the later row
        (["EuroSAT", 16, "", ""], 3, 0.3, 0.1),
        (["Food101", 4, "few_shot", ""], 1, 0.1, 0.1),
        (["", -1, "", ""], 9, 0.0003, 0.1),
        (["Food101", 4, "xd", "matched"], 6, 0.1, 0.1),
        (["DTD", 16, "few_shot", "matched"], 7, 0.0003, 0.1),
        (["EuroSAT", 8, "few_shot", "matched"], 8, 0.3, 0.5),
    ],
)
def test_rows_whose_conditions_hold_are_laid_over_the_rest(write, options, epochs, lr, gamma):
    cfg = read(write("a.yaml", OVERRIDES))
    cfg.DATASET.NAME, cfg.DATASET.NUM_SHOTS, cfg.PROTOCOL, cfg.PRESET = options
    resolve(cfg)
    found = cfg.OPTIM.MAX_EPOCH, cfg.OPTIM.LR, cfg.OPTIM.GAMMA
    assert found == (epochs, lr, gamma)
    assert cfg.OVERRIDES == {}


def test_a_later_file_changes_the_rows_of_an_earlier_one(write):
    cfg = extended()
    cfg.merge_from_file(write("a.yaml", "OVERRIDES: {DTD: {OPTIM: {MAX_EPOCH: 4, LR: 0.4}}}"))
    cfg.merge_from_file(write("b.yaml", "DATASET: {NAME: DTD}\nOVERRIDES: {DTD: {OPTIM: {MAX_EPOCH: 5}}}"))
    resolve(cfg)
    assert (cfg.OPTIM.MAX_EPOCH, cfg.OPTIM.LR) == (5, 0.4)


@pytest.mark.parametrize(
    "row, message",
    [
        ("{OPTIM: {MAX_EPOCHS: 3}}", "OPTIM.MAX_EPOCHS in OVERRIDES.DTD; do you mean OPTIM.MAX_EPOCH"),
        ("{OPTIM: {MAX_EPOCH: many}}", "OPTIM.MAX_EPOCH in OVERRIDES.DTD must be a int"),
        ("5", "OVERRIDES.DTD must be a group of options, not 5"),
    ],
)
def test_a_row_that_does_not_fit_is_named(write, row, message):
    cfg = read(write("a.yaml", f"DATASET: {{NAME: DTD}}\nOVERRIDES:\n  DTD: {row}\n"))
    with pytest.raises(UserError, match=message):
        resolve(cfg)
