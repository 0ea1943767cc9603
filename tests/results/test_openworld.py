"""Two halves joined: the numbers are those of plain loops, and what doesn't belong together is refused in one line."""

import csv
import io
import json
import math

import numpy as np
import pytest

from parse_test_res import main
from results import openworld
from results.gate import Broken
from results.read import SCORES

CLASSES, BASE = 7, 4
SCALE = 20.0


def arrays(part, **said):
    """logits.npz of one half with 30 images; `said` changes what it says of itself."""
    own = np.arange(BASE) if part == "base" else np.arange(BASE, CLASSES)
    draw = np.random.default_rng(BASE if part == "base" else CLASSES)
    labels = draw.choice(own, 30)
    logits = SCALE * draw.normal(0.2, 0.1, (30, CLASSES))
    logits[np.arange(30), labels] += 3
    highest = logits.max(axis=1)
    about = dict(
        format=1, trainer="CoOp", dataset="Emoji", subsample=part, shots=5, seed=1, split="a" * 64, tested="test"
    )
    about |= dict(backbone="tiny", preset="", weights="w", options={"TRAINER.N_CTX": 4}, logit_scale=SCALE)
    about["precision"] = "fp32"
    return {
        **{"relative_logits": (logits - highest[:, None]).astype(np.float16), "highest": highest.astype(np.float32)},
        **{"labels": labels, "own": own, "images": np.array([f"{part}/{i}.png" for i in range(30)])},
        **{"classnames": np.array([f"class {i}" for i in range(CLASSES)]), "about": np.array(json.dumps(about | said))},
    }


def put(folder, part, change=None, **said):
    """Write the half into `folder` -> folder; `change` replaces arrays."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "logits.npz", **arrays(part, **said) | (change or {}))
    return folder


@pytest.fixture
def halves(tmp_path):
    return [openworld.read_half(put(tmp_path / part, part)) for part in ("base", "new")]


def softmax(row):
    powers = [math.exp(value - max(row)) for value in row]
    return [power / sum(powers) for power in powers]


def argmax(row, among):
    return max(among, key=lambda c: (row[c], -c))


def base_score(row, base):
    """The highest probability of a base class among all classes."""
    powers = softmax(row)
    return max(powers[c] for c in base)


def paired(base, new):
    """OpenworldAUC by its definition: what each pair of a base and a new image counts, 1, 0.5 or 0."""

    def seen(half):
        """Whether each image is right among its half's own classes, and its score."""
        pairs = zip(half.logits, half.labels, strict=True)
        return [(argmax(row, half.own) == label, base_score(row, base.own)) for row, label in pairs]

    return [
        (1 if first > second else 0.5 * (first == second)) if right and other else 0
        for right, first in seen(base)
        for other, second in seen(new)
    ]


def random_halves(number):
    """Small halves with rounded logits, so that classes tie within an image. All images have one of a few rows, so that
    images tie, too; of rows with one score only one is taken, since rounding could put them in an order."""
    draw = np.random.default_rng(number)
    classes = draw.permutation(draw.integers(2, 8))
    cut = draw.integers(1, len(classes))
    owns = np.sort(classes[:cut]), np.sort(classes[cut:])
    rows = draw.normal(0, 2, (draw.integers(1, 12), len(classes))).round()
    rows = np.array(list({round(base_score(row, owns[0]), 9): row for row in rows}.values()))
    found = []
    for own in owns:
        images = draw.integers(1, 16)
        logits, labels = rows[draw.integers(len(rows), size=images)], draw.choice(own, images)
        found.append(openworld.Half(logits, labels, own, [], [], {}))
    return found


class TestNumbers:
    def test_generalised_accuracy_is_among_all_classes(self, halves):
        found, means = openworld.numbers(*halves), []
        for half, name in zip(halves, ("gen_base", "gen_new"), strict=True):
            pairs = zip(half.logits, half.labels, strict=True)
            means.append(100 * sum(argmax(row, range(CLASSES)) == label for row, label in pairs) / 30)
            assert found[name] == pytest.approx(means[-1])
        assert found["gen_h"] == pytest.approx(2 * means[0] * means[1] / sum(means)) and 0 < means[0] < 100

    def test_openworld_auc_counts_pairs_that_are_right_and_in_order(self, halves):
        hits = paired(*halves)
        assert openworld.numbers(*halves)["openworld_auc"] == pytest.approx(100 * sum(hits) / 900)
        assert set(hits) == {0, 1}

    def test_openworld_auc_is_that_of_a_plain_loop_for_small_halves_with_ties(self):
        all_hits = []
        for number in range(200):
            hits = paired(*(halves := random_halves(number)))
            assert openworld.openworld_auc(*halves) == pytest.approx(sum(hits) / len(hits)), number
            all_hits += hits
        assert all_hits.count(0.5) > 100

    def test_a_half_without_a_right_answer_has_an_openworld_auc_of_zero(self, halves):
        base, new = halves
        base.labels[:] = (base.labels + 1) % BASE
        base.logits[np.arange(30), base.labels] = -100
        assert openworld.openworld_auc(base, new) == 0

    def test_scores_look_at_the_base_classes_alone_and_mcm_at_the_cosines(self, halves):
        row = halves[1].logits[0, :BASE]
        found = {name: value[0] for name, value in openworld.scores(row[None], SCALE).items()}
        assert tuple(found) == SCORES
        assert found["mcm"] == pytest.approx(max(softmax([value / SCALE for value in row])))
        assert found["msp"] == pytest.approx(max(softmax(row))) and found["max_logit"] == max(row)
        assert found["energy"] == pytest.approx(math.log(sum(map(math.exp, row))))
        changed = halves[1].logits.copy()
        changed[:, BASE:] += 50
        other = openworld.Half(
            changed, *(getattr(halves[1], key) for key in ("labels", "own", "images", "classnames", "about"))
        )
        one, two = openworld.numbers(*halves), openworld.numbers(halves[0], other)
        assert one["auroc_energy"] == two["auroc_energy"] and one["gen_new"] != two["gen_new"]

    def test_without_a_logit_scale_there_is_no_mcm(self, tmp_path):
        folders = [put(tmp_path / part, part, logit_scale=None) for part in ("base", "new")]
        found = openworld.join(*folders)
        assert "auroc_msp" in found and "auroc_mcm" not in found

    def test_the_better_a_score_tells_them_apart_the_better_its_numbers(self):
        apart, same = (np.array([2.0, 3.0, 4.0]), np.array([0.0, 1.0])), (np.ones(3), np.ones(2))
        assert [measure(*apart) for measure in (openworld.auroc, openworld.average_precision)] == [1, 1]
        assert openworld.false_positives(*apart) == 0 and openworld.false_positives(*same) == 1
        assert openworld.auroc(*same) == 0.5

    def test_fpr95_has_two_conventions(self):
        inside, outside = np.arange(100.0), np.arange(-50.0, 20.0)
        assert openworld.false_positives(inside, outside) == pytest.approx(15 / 70)  # 5 to 19 pass with the base ones
        assert openworld.false_positives(-outside, -inside) == pytest.approx(17 / 100)  # 67 of 70 lie at or below 16


REFUSED = {
    "other seeds": ({"seed": 2}, {}, "seed 1 there, 2 here"),
    "another dataset": ({"dataset": "EuroSAT"}, {}, "dataset Emoji there, EuroSAT here"),
    "another split": ({"split": "b" * 64}, {}, "split aaaa"),
    "other shots": ({"shots": 16}, {}, "shots 5 there, 16 here"),
    "another backbone": ({"backbone": "ViT-B/16"}, {}, "backbone tiny there, ViT-B/16 here"),
    "another precision": ({"precision": "bf16"}, {}, "precision fp32 there, bf16 here"),
    "another method": ({"trainer": "TCP"}, {}, "trainer CoOp there, TCP here"),
    "other images of it": ({"tested": "val"}, {}, "tested test there, val here"),
    "another checkpoint": ({"weights": "v"}, {}, "they tested other weights"),
    "other options": ({"options": {"TRAINER.N_CTX": 16}}, {}, "TRAINER.N_CTX 4 there, 16 here"),
    "twice the same half": ({"subsample": "base"}, {}, "its classes are base, not new"),
    "other class names": ({}, {"classnames": np.array(["x"] * CLASSES)}, "their logits are of other classes"),
    "a class in neither": (
        {},
        {"own": np.arange(BASE, CLASSES - 1), "labels": np.full(30, BASE)},
        "not the whole dataset",
    ),
    "images in both": ({}, {"images": np.array([f"base/{i}.png" for i in range(30)])}, "they have images in common"),
}


def test_halves_with_other_options_of_time_and_memory_are_joined(tmp_path):
    options = {"TRAINER.CACHE_LIMIT": 16.0, "TRAINER.COMPILE": True, "TRAINER.N_CTX": 4}  # as an earlier version kept
    assert openworld.join(put(tmp_path / "base", "base"), put(tmp_path / "new", "new", options=options))


class TestRefusals:
    @pytest.mark.parametrize("case", REFUSED)
    def test_what_does_not_belong_together_is_not_joined(self, tmp_path, case):
        said, change, why = REFUSED[case]
        base, new = put(tmp_path / "base", "base"), put(tmp_path / "new", "new", change, **said)
        with pytest.raises(Broken, match=why) as error:
            openworld.join(base, new)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize(
        ("name", "array", "why"),
        [
            ("labels", np.zeros(30), "labels is of another type"),
            ("labels", np.full(30, CLASSES), "don't fit together"),
            ("labels", np.full(30, BASE), "don't fit together"),  # not one of its own
            ("highest", np.zeros(29, np.float32), "don't fit together"),
            ("highest", np.full(30, np.nan, np.float32), "no numbers"),
            ("about", np.array("[]"), "doesn't say what was run"),
            ("about", np.array('{"format": 2}'), "or is of another version of this code"),
            ("about", np.array("{"), "is damaged"),
            ("classnames", np.array(["a", None]), "is damaged"),  # a pickle, which isn't opened
        ],
    )
    def test_a_file_of_another_shape_is_named(self, tmp_path, name, array, why):
        with pytest.raises(Broken, match=why):
            openworld.read_half(put(tmp_path, "base", {name: array}))

    @pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half a file", b"\x93NUMPY"])
    def test_a_broken_file_is_one_line(self, tmp_path, content):
        (tmp_path / "logits.npz").write_bytes(content)
        with pytest.raises(Broken, match="logits.npz is damaged"):
            openworld.read_half(tmp_path)


class TestCommand:
    @pytest.fixture
    def runs(self, plant_run, tmp_path):
        """Both halves of two seeds -> their folders."""
        found = {}
        for seed in (1, 2):
            for part, file in zip(("base", "new"), plant_run(tmp_path, 80.0, 60.0, seed), strict=True):
                found[seed, part] = put(file.parent, part, seed=seed)
        return found

    def test_the_tables_and_the_csv_have_the_joined_numbers(self, runs, tmp_path, capsys):
        assert main([str(tmp_path), "--openworld"]) == 0
        out = capsys.readouterr().out
        wanted = openworld.join(runs[1, "base"], runs[1, "new"])  # both seeds have the same logits
        assert "all classes at once, emoji" in out and f"{wanted['openworld_auc']:.2f} ±0.00" in out
        assert all(f"{wanted[f'auroc_{score}']:.2f} ±0.00" in out for score in SCORES)
        main([str(tmp_path), "--openworld", "--csv", "-"])
        lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
        found = {line["metric"]: float(line["mean"]) for line in lines if line["metric"] in wanted}
        assert found == pytest.approx(wanted) and set(found) == set(wanted)

    def test_without_the_flag_no_logits_are_read(self, runs, tmp_path, capsys):
        (runs[1, "base"] / "logits.npz").write_bytes(b"")
        assert main([str(tmp_path)]) == 0 and "OpenworldAUC" not in capsys.readouterr().out

    def test_what_can_not_be_joined_is_listed_and_its_accuracy_stays(self, runs, tmp_path, capsys):
        (runs[1, "base"] / "logits.npz").unlink()
        put(runs[2, "new"], "new", seed=2, weights="others")
        assert main([str(tmp_path), "--openworld"]) == 1
        out, err = capsys.readouterr()
        assert "has no logits.npz: test it into another folder with TEST.SAVE_LOGITS True" in err
        assert "they tested other weights" in err and "all classes at once" not in out
        assert "80.00 ±0.00" in out
