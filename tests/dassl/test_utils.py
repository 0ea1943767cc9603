import io
import sys

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from dassl.utils import (
    AverageMeter,
    Logger,
    MetricMeter,
    Registry,
    UserError,
    check_availability,
    check_isfile,
    count_num_param,
    listdir_nohidden,
    load_checkpoint,
    load_pretrained_weights,
    nearest,
    read_json,
    resume_from_checkpoint,
    save_checkpoint,
    set_random_seed,
    setup_logger,
    tolist_if_not,
    write_json,
)


def test_nearest_finds_the_likeliest_name_whatever_its_case():
    assert nearest("skiptunning", ["CoOp", "SkipTuning", "ZeroshotCLIP"]) == "SkipTuning"
    assert nearest("anything", []) == ""


def test_a_registry_refuses_duplicates_and_suggests_for_unknown_names():
    registry = Registry("TRAINER")

    @registry.register()
    class CoOp:
        pass

    assert registry.get("CoOp") is CoOp and registry.registered_names() == ["CoOp"]
    with pytest.raises(KeyError, match='^An object named "CoOp" was already registered in "TRAINER" registry$') as e:
        registry.register(CoOp)
    assert isinstance(e.value, UserError)
    with pytest.raises(KeyError, match=r'No "Coop" in the TRAINER registry \(do you mean "CoOp"\?\)') as e:
        registry.get("Coop")
    assert isinstance(e.value, UserError)


def test_errors_keep_their_one_line_through_a_worker():
    wrapped = (
        "Caught UserError in DataLoader worker process 1.\nOriginal Traceback (most recent call last):\n"
        '  File "x.py", line 1, in y\n'
        'dassl.utils.errors.UserError: Cannot read the image "a: b.jpg" (cut off)\n'
    )
    assert str(UserError(wrapped)) == 'Cannot read the image "a: b.jpg" (cut off)'


def test_meters_print_the_last_value_and_the_average():
    meter = MetricMeter()
    meter.update({"loss": torch.tensor(2.0), "acc": 50})
    meter.update({"loss": 1, "acc": 100.0})
    meter.update(None)
    assert str(meter) == "loss 1.0000 (1.5000) acc 100.0000 (75.0000)"
    with pytest.raises(TypeError):
        meter.update([1])
    ema = AverageMeter(ema=True)
    ema.update(1.0)
    ema.update(1.0)
    assert ema.avg == pytest.approx(0.19)


def test_the_logger_copies_stdout_and_never_touches_an_older_log(tmp_path, monkeypatch, capsys):
    console = sys.stdout
    monkeypatch.setattr(sys, "stdout", console)  # restores it afterwards
    setup_logger(str(tmp_path))
    print("first")
    assert (sys.stdout.isatty(), sys.stdout.encoding) == (console.isatty(), console.encoding)
    sys.stdout.close()
    sys.stdout = console
    setup_logger(str(tmp_path))
    print("second")
    sys.stdout.close()
    sys.stdout = console
    logs = sorted(path.name for path in tmp_path.iterdir())
    assert logs[0] == "log.txt" and logs[1].startswith("log.txt-20") and len(logs) == 2
    assert (tmp_path / "log.txt").read_text() == "first\n"
    assert (tmp_path / logs[1]).read_text() == "second\n"
    assert "first\nsecond\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "last"),
    [(UserError("no images"), "Error: no images\n"), (ValueError("a bug"), "ValueError: a bug\n")],
)
def test_a_log_ends_with_the_error_that_ended_its_block(tmp_path, error, last):
    console = sys.stdout
    with pytest.raises(type(error)), Logger(str(tmp_path / "a" / "log.txt")):
        print("begun")
        raise error
    assert sys.stdout is console
    log = (tmp_path / "a" / "log.txt").read_text()
    assert log.startswith("begun\n") and log.endswith(last)
    assert ("test_a_log_ends" in log) == isinstance(error, ValueError)  # the traceback of a bug only


def test_a_console_that_cannot_show_a_character_gets_it_escaped(tmp_path, monkeypatch):
    console = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", console)
    with Logger(str(tmp_path / "log.txt")):
        print("class \u65e5 \udcff")
    console.flush()
    assert console.buffer.getvalue() == b"class \\u65e5 \\udcff\n"
    assert (tmp_path / "log.txt").read_text(encoding="utf-8") == "class \u65e5 \\udcff\n"


def test_small_helpers_behave_as_upstream(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_json({"a": [1]}, "bare.json")
    assert read_json("bare.json") == {"a": [1]}
    (tmp_path / ".hidden").touch()
    (tmp_path / "a.txt").touch()
    assert listdir_nohidden(".", sort=True) == ["a.txt", "bare.json"]
    with pytest.warns(UserWarning, match='No file found at "nowhere"'):
        assert not check_isfile("nowhere")
    assert tolist_if_not((1, 2)) == [(1, 2)] and tolist_if_not([1]) == [1]
    linear = torch.nn.Linear(3, 2)
    assert count_num_param(linear) == count_num_param(params=[{"params": list(linear.parameters())}]) == 8
    set_random_seed(3)
    first = torch.rand(2)
    set_random_seed(3)
    assert torch.equal(first, torch.rand(2))


def test_checkpoints_come_back_without_dataparallel_prefixes(tmp_path, capsys):
    source, target = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    optim, other = (torch.optim.SGD(m.parameters(), lr=lr) for m, lr in ((source, 0.5), (target, 0.1)))
    weights = {f"module.{key}": value for key, value in source.state_dict().items()}
    save_checkpoint({"state_dict": weights, "epoch": 3, "optimizer": optim.state_dict()}, str(tmp_path))
    assert (tmp_path / "checkpoint").read_text() == "model.pth.tar-3\n"
    assert resume_from_checkpoint(str(tmp_path), target, other) == 3
    assert torch.equal(source.weight, target.weight) and other.param_groups[0]["lr"] == 0.5
    out = capsys.readouterr().out
    assert f"Checkpoint saved to {tmp_path}/model.pth.tar-3" in out and "Previous epoch: 3" in out
    load_pretrained_weights(target, str(tmp_path / "model.pth.tar-3"))
    with pytest.warns(UserWarning, match="Cannot load"):
        load_pretrained_weights(torch.nn.Linear(5, 5), str(tmp_path / "model.pth.tar-3"))


def test_upstream_checkpoints_with_a_scheduler_object_are_read(tmp_path):
    model = torch.nn.Linear(2, 2)
    optim = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 2)).sum().backward()
    optim.step()
    scheduler = {"last_epoch": 1, "successor": CosineAnnealingLR(optim, 10.0)}
    torch.save({"state_dict": model.state_dict(), "scheduler": scheduler, "epoch": 1}, tmp_path / "old")
    loaded = load_checkpoint(str(tmp_path / "old"))
    assert loaded["scheduler"]["successor"].state_dict()["T_max"] == 10.0


def test_strange_and_broken_checkpoints_are_refused_in_one_line(tmp_path):
    class Strange:
        pass

    Strange.__qualname__ = "Strange"
    globals()["Strange"] = Strange
    torch.save({"state_dict": {}, "epoch": Strange}, tmp_path / "strange")
    (tmp_path / "short").write_bytes(b"PK\x03\x04")
    for name in ("strange", "short"):
        with pytest.raises(UserError, match=f'Unable to load checkpoint from ".*{name}"') as caught:
            load_checkpoint(str(tmp_path / name))
        assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match='File is not found at ".*nowhere"'):
        load_checkpoint(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError):
        load_checkpoint(None)


def test_a_name_that_is_not_available_gets_the_nearest_one():
    check_availability("cosine", ["step", "cosine"])
    with pytest.raises(ValueError, match=r"belong to \['step', 'cosine'\], but got \[cosin\] \(do you mean \[cosine\]"):
        check_availability("cosin", ["step", "cosine"])
