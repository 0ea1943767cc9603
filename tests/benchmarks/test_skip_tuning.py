"""The cost table: what it measures is what it says, on a CLIP small enough for a test."""

import json

import pytest
import torch

from benchmarks import measure
from benchmarks import skip_tuning as bench
from benchmarks.paper_memory import estimate
from tests.benchmarks.conftest import BASE_CLASSES
from trainers.parts.cskip import keep_probability


@pytest.fixture(scope="module")
def result(tmp_path_factory, small_shape):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "STEADY", (0, 1))
        patch.setattr(bench, "MATRIX", 128)  # a large one takes long in bf16 on CPUs without it
        patch.setattr(bench, "cpu_precision", lambda: ("bf16", ""))  # small sizes may be imitated
        return bench.run(small_shape, tmp_path_factory.mktemp("bench"), [6, 12, 200], rounds=1)


def test_every_row_has_its_figures(result):
    for rows in result["steps"].values():
        assert list(rows) == [*bench.PLAIN, *bench.EXACT]  # also where some came last, as lines through others
        for row in rows.values():  # a line through two noisy times may lead anywhere
            keys = ("gflop", "floor_ms", "peak_mb", "paper_mb") + (() if "extrapolated" in row else ("ms", "run_s"))
            assert all(row[key] > 0 for key in keys)


def test_turns_leave_out_their_first_calls_and_count_as_a_median(monkeypatch):
    calls, clock = [], iter([100, 1, 5, 2] * 2 + [100, 7, 8, 9] * 2)
    rows = {name: lambda name=name: calls.append(name) for name in ("a", "b")}
    monkeypatch.setattr(measure, "seconds", lambda function: function() or next(clock))
    found = measure.turns(rows, 1, unmeasured=0, measured=4)
    assert {name: [one.seconds for one in taken] for name, taken in found.items()} == {"a": [3.5], "b": [3.5]}
    assert measure.interleaved(rows, 2, unmeasured=2, measured=2) == {"a": 53.5, "b": 8.5}
    assert calls == [*"aaaabbbb", *"aaaabbbb" * 2]


def test_page_faults_are_those_of_the_measured_calls_of_a_turn(monkeypatch):
    """The first call after another row's takes pages that those behind it don't."""
    given, costs = 0, iter([1000, 1000, 3, 5])

    def first_takes_more():
        nonlocal given
        given += next(costs)

    monkeypatch.setattr(measure, "page_faults", lambda: given)
    (turn,) = measure.turns({"a": first_takes_more}, 1, unmeasured=2, measured=2)["a"]
    assert turn.page_faults == 4


def test_where_the_system_does_not_tell_page_faults_none_are_claimed(monkeypatch):
    monkeypatch.setattr(measure, "page_faults", lambda: None)
    assert measure.turn(lambda: None, 0, 1).page_faults is None


def test_trainers_stay_on_the_cpu_as_the_plain_rows_do(tmp_path, small_shape, monkeypatch):
    made = bench.Bench(tmp_path, small_shape)
    trainer = made.trainer("SkipTuning", "", 6, "fp32")
    assert trainer.cfg.USE_CUDA is False and trainer.device.type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert measure.machine().startswith("CPU, ")


def test_every_step_has_its_spread_and_the_allocator_is_named(result, monkeypatch):
    row = result["steps"][12]["both exact"]
    assert 0 < row["ms_low"] <= row["ms"] <= row["ms_high"] and row["page_faults"] >= 0
    monkeypatch.setenv("MALLOC_TOP_PAD_", "64")
    assert "MALLOC_TOP_PAD_=64" in measure.allocator() and result["allocator"] in bench.table(result)


def test_what_does_not_fit_is_a_straight_line_through_what_was_measured(result):
    low, high, beyond = (result["steps"][classes][bench.FT] for classes in (6, 12, 200))
    assert "extrapolated" not in low and beyond["extrapolated"]
    for key in ("ms", "peak_mb", "gflop"):
        assert beyond[key] == pytest.approx(low[key] + (200 - 6) / 6 * (high[key] - low[key]))


def test_skips_and_exact_savings_each_take_operations_away(result):
    gflop = {name: row["gflop"] for name, row in result["steps"][12].items()}
    assert gflop["both exact"] < gflop["both plain"] < gflop["LSkip only, plain"] < gflop["FT plain"]
    assert gflop["both plain"] < gflop["CSkip only, plain"] < gflop["FT plain"]


def test_a_whole_run_is_its_steps_and_one_extraction_per_epoch(result):
    row = result["steps"][12]["both exact"]
    images = 12 * 16 * 20
    expected = images / 4 * row["ms"] / 1e3 + images / result["images_per_second"]["both exact"]["extract"]
    assert row["run_s"] == pytest.approx(expected)
    ft = result["steps"][12]["FT plain"]
    assert ft["run_s"] == pytest.approx(images / 4 * ft["ms"] / 1e3)


def test_cached_images_have_their_size_place_and_extraction(result):
    row, half = (result["cache"][12][name] for name in bench.EXACT)
    one, five, fresh = (row[views] for views in bench.VIEWS)
    assert one["gb"] == pytest.approx(12 * 16 * 5 * 64 * 4 / 1e9) and half["1 view"]["gb"] == one["gb"] / 2
    assert five["gb"] == 5 * one["gb"] and fresh["gb"] == one["gb"] and one["place"] == "memory"
    once = 12 * 16 / result["images_per_second"]["both exact"]["extract"]
    assert one["extract_s"] == pytest.approx(once) and five["extract_s"] == pytest.approx(5 * once)
    assert fresh["extract_s"] == pytest.approx(20 * once)


def test_several_views_share_the_room_that_one_has(tmp_path, small_shape):
    """As FeatureCache.room counts them."""
    made = bench.Bench(tmp_path, small_shape)
    trainer = made.trainer("SkipTuning", "", 12, "fp32")
    trainer.options.defrost()
    trainer.options.CACHE_LIMIT = 3 * 12 * 16 * 5 * 64 * 4 / 1e9  # three views
    found = bench.cache(made, {"both exact": trainer}, 12, {"both exact": {"extract": 1.0}})["both exact"]
    assert [one["place"] for one in found.values()] == ["memory", "a mapped file", "memory"]


def test_a_row_is_compared_with_a_large_product_that_ran_beside_it_in_its_precision(result, monkeypatch):
    rates = result["images_per_second"]
    for rate in rates.values():
        for kind in ("extract", "test"):
            limit = rate[f"{kind}_limit_gflops"]
            assert rate[f"{kind}_share"] == pytest.approx(rate[kind] * rate[f"{kind}_gflop"] / limit)
        assert 0 < rate["extract_gflop"] == rates["plain"]["extract_gflop"] < rate["test_gflop"]
    for row in result["steps"][12].values():
        assert row["floor_ms"] == pytest.approx(1e3 * row["gflop"] / row["limit_gflops"])
    monkeypatch.setattr(bench, "MATRIX", 8)
    rows = bench.with_limits({"both plain": int, ("both exact, bf16", "test"): int})
    assert list(rows) == ["both plain", ("both plain", "limit")] + [
        ("both exact, bf16", "test", *x) for x in ([], ["limit"])
    ]
    assert [rows[key]().dtype for key in rows if "limit" in key] == [torch.float32, torch.bfloat16]
    assert bench.rate_of(0.5) == 2 * 8**3 / 0.5


def test_a_cpu_without_bf16_measures_the_rest(monkeypatch, result):
    monkeypatch.setattr(bench, "cpu_precision", lambda: ("fp32", "this CPU has no products of bf16"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # another device's products don't count
    assert list(bench.exact_rows()) == ["both exact"]
    text = bench.table(result | {"matmul_gflops": {"fp32": [1.0, 2.0]}})
    assert "bf16: not measured" in text and "bf16: not measured" not in bench.table(result)


def test_table_names_the_machine_the_rates_and_every_row(result):
    text = bench.table(result)
    assert torch.__version__ in text and "GFLOP/s" in text and "both exact, bf16" in text and "~" in text
    assert all(head in text for head in ("ms/floor", "fp32/", "page faults", "of the limit", "fresh in 20 epochs"))


def test_command_writes_json_and_never_over_a_file(tmp_path, monkeypatch, capsys, result):
    monkeypatch.setattr(bench, "run", lambda *args, **kwargs: result)
    file = tmp_path / "figures.json"
    assert bench.main(["--quick", "--json", str(file)]) == 0
    assert json.loads(file.read_text())["machine"] == result["machine"]
    assert bench.main(["--quick", "--json", str(file)]) == 1
    assert "exists" in capsys.readouterr().err


def test_classes_that_cannot_be_are_refused(capsys):
    assert bench.main(["--classes", "0"]) == 1
    assert "--classes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("published", "blocks", "skips_classes"), [(1846, 12, False), (861, 6, False), (404, 6, True), (919, 12, True)]
)
def test_paper_style_estimate_reproduces_the_papers_memory(published, blocks, skips_classes):
    """Table 4: FT, LSkip only, both and CSkip only, averaged over the base classes of eleven datasets."""

    def texts(number):
        return float(keep_probability(number, 0.5, 0.3, 50, "official").sum()) if skips_classes else number

    mean = sum(map(texts, BASE_CLASSES)) / len(BASE_CLASSES)
    assert estimate(4, mean, blocks, pixels=blocks == 12) == pytest.approx(published, rel=0.01)


def test_images_of_the_rates_are_encoded_as_the_trainer_does(tmp_path, small_shape):
    made = bench.Bench(tmp_path, small_shape)
    trainer = made.trainer("SkipTuning", "", 6, "fp32")
    v = trainer.encode_shallow(made.pixels)
    plain = bench.shallow_image(made.clip_model().visual, made.pixels, 6).transpose(0, 1)
    torch.testing.assert_close(v, plain, rtol=1e-4, atol=1e-4)
