"""Eq. 3 and 4 against plain loops and autograd, and the command on the embedded model."""

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from benchmarks import sensitivity
from benchmarks.sensitivity import gradient_dependence, image_feature, kept_share, layer_features, suggest_omega
from clip import clip
from dassl.utils import UserError

ROOT = Path(__file__).parents[2]
NAMES = ["dog", "a very long class name", "ice cream", "bee", "old train"]


@pytest.fixture
def before(make_clip):
    return make_clip()


@pytest.fixture
def after(before):
    """The model with every weight of its blocks changed a little."""
    model = copy.deepcopy(before)
    with torch.no_grad():
        for tower in (model.visual.transformer, model.transformer):
            for parameter in tower.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.fixture
def tokens():
    return clip.tokenize(NAMES)


@pytest.fixture
def batches():
    """Two batches of 3 and 2 images."""
    images, labels = torch.randn(5, 3, 32, 32), torch.tensor([1, 0, 1, 4, 2])
    return [{"img": images[part], "label": labels[part]} for part in (slice(0, 3), slice(3, 5))]


class TestFeatureSensitivity:
    @torch.no_grad()
    def test_the_last_layer_is_what_the_towers_outputs_are_made_of(self, before, tokens, batches):
        images = batches[0]["img"]
        features = layer_features(before, images, tokens[:3])
        expected = F.normalize(before.encode_image(images), dim=-1)
        torch.testing.assert_close(image_feature(before.visual, features["image"][-1]), expected)
        text = before.ln_final(features["text"][-1]) @ before.text_projection
        torch.testing.assert_close(text, before.encode_text(tokens[:3]))

    def test_it_is_the_distance_at_the_pooled_token_after_each_block_one_image_at_a_time(
        self, before, after, tokens, batches
    ):
        @torch.no_grad()
        def features(model, image, text):
            """What enters blocks 2, 3, ... of both towers: the outputs of all blocks but the last."""
            seen = {"image": [], "text": []}
            model.encode_image(image[None], lambda i, x: seen["image"].append(x[0, 0]) or x)
            model.encode_text(text[None], lambda i, x: seen["text"].append(x[text.argmax(), 0]) or x)
            return {tower: outputs[1:] for tower, outputs in seen.items()}

        found, *_ = sensitivity.measure(before, after, tokens, batches)
        at = 0
        for batch in batches:
            for image, label in zip(batch["img"], batch["label"], strict=True):
                old, new = (features(model, image, tokens[label]) for model in (before, after))
                for tower in ("image", "text"):
                    expected = [(a - b).square().sum().sqrt() for a, b in zip(old[tower], new[tower], strict=True)]
                    torch.testing.assert_close(found[tower][:-1, at], torch.stack(expected))
                at += 1
        assert found["image"].shape == found["text"].shape == (3, 5)

    def test_layers_below_the_first_changed_one_have_none(self, before, tokens, batches):
        changed = copy.deepcopy(before)
        changed.visual.transformer.resblocks[1].mlp.c_fc.weight.data.mul_(1.5)
        found, *_ = sensitivity.measure(before, changed, tokens, batches)
        assert (found["image"][0] == 0).all() and (found["image"][1:] > 0).all()
        assert (found["text"] == 0).all()


class TestGradientDependence:
    @pytest.mark.parametrize("scale", [1.0, 100.0])
    def test_it_is_the_change_of_autograds_gradient_when_a_class_leaves_the_denominator(self, before, scale, batches):
        images, labels = batches[0]["img"], batches[0]["label"]
        texts = F.normalize(torch.randn(len(NAMES), 48), dim=-1)
        kept = {}
        before.visual.transformer.register_forward_hook(lambda module, given, x: kept.update(last=x))

        def gradient(image, label, without=None):
            feature = F.normalize(before.encode_image(image[None]), dim=-1)[0]
            logits = scale * texts @ feature
            denominator = [z for c, z in enumerate(logits) if c != without]
            loss = torch.stack(denominator).logsumexp(0) - logits[label]
            return torch.autograd.grad(loss, kept["last"])[0][0, 0]  # at the class token

        pooled = layer_features(before, images, clip.tokenize(["x"] * 3))["image"][-1]
        found = gradient_dependence(before.visual, pooled, texts, scale)
        for image, label, row in zip(images, labels, found, strict=True):
            whole = gradient(image, label)
            expected = [(whole - gradient(image, label, c)).norm() for c in range(len(NAMES))]
            torch.testing.assert_close(row, torch.stack(expected), rtol=1e-3, atol=1e-6 * scale)

    def test_a_class_that_takes_all_probability_keeps_a_finite_dependence(self, before):
        pooled = torch.randn(1, 128)
        feature = image_feature(before.visual, pooled).detach()
        texts = torch.cat([feature, -feature, F.normalize(torch.randn(1, 48), dim=-1)])
        found = gradient_dependence(before.visual, pooled, texts, 20.0)  # in fp32 probability 1
        assert found.isfinite().all() and found[0, 0] > found[0, 2] > 0

    def test_one_class_is_refused(self, before):
        with pytest.raises(UserError, match="two or more"):
            gradient_dependence(before.visual, torch.randn(1, 128), torch.ones(1, 48), 1.0)

    def test_chunks_of_classes_change_nothing(self, before, tokens, monkeypatch):
        whole = sensitivity.class_features(before, tokens)
        monkeypatch.setattr(sensitivity, "TEXTS_AT_A_TIME", 2)
        torch.testing.assert_close(sensitivity.class_features(before, tokens), whole)


class TestWhatFollows:
    @pytest.mark.parametrize(
        "image, text, omega",
        [
            ([0.01, 0.02, 0.03, 0.5, 1.0], [0.01, 0.04, 0.3, 0.6, 1.0], 2),  # the text tower decides
            ([0.06, 0.02, 0.03, 0.5, 1.0], [0.01, 0.02, 0.03, 0.6, 1.0], 0),  # a quiet layer behind a loud one
            ([0.01, 0.02, 0.03, 0.04, 1.0], [0.01, 0.02, 0.03, 0.04, 1.0], 4),
            ([0.01, 0.02, 0.03, 0.5, 1.0], [0.01, 0.02, 1.0], 2),  # towers of different depth
        ],
    )
    def test_omega_counts_the_first_layers_that_are_quiet_in_both_towers(self, image, text, omega):
        assert suggest_omega({"image": image, "text": text}, 0.05) == omega

    def test_omega_always_leaves_a_layer_to_train(self):
        assert suggest_omega({"image": [0.1, 1.0], "text": [0.1, 1.0]}, threshold=2) == 1

    def test_the_kept_share_counts_the_nearest_classes_with_the_own_one_first(self):
        dependence = torch.tensor([[1.0, 9.0, 3.0, 4.0]])
        similarity = torch.tensor([[0.1, 0.2, 0.9, 0.3]])  # nearest: 2, 3, 1, 0; own: 1
        share = [kept_share(dependence, similarity, torch.tensor([1]), ratio) for ratio in (0.1, 0.25, 0.5, 0.75, 1)]
        assert share == pytest.approx([0, 0, 3 / 8, 7 / 8, 1])

    def test_own_classes_are_left_out_of_every_figure(self):
        dependence = torch.tensor([[100.0, 1.0, 3.0], [2.0, 100.0, 0.001]])
        towers = {"image": torch.tensor([[1.0, 3.0], [4.0, 4.0]]), "text": torch.tensor([[0.1, 0.1], [4.0, 4.0]])}
        labels = torch.tensor([0, 1])
        found = sensitivity.summarise(towers, dependence, torch.rand(2, 3), labels, ["a", "b", "c"], 0.6)
        assert found["dependence"] == pytest.approx({"a": 2.0, "b": 1.0, "c": 1.5005})
        assert found["dependence_quantiles"][1.0] == 3.0
        assert found["dependence_below_1_percent"] == 0.25
        assert found["sensitivity"]["image"] == [2.0, 4.0] and found["scaled_sensitivity"]["image"] == [0.5, 1.0]
        assert found["omega"] == 1

    def test_a_model_that_fine_tuning_left_as_it_was_is_refused(self, before, tokens, batches):
        measured = sensitivity.measure(before, before, tokens, batches)
        with pytest.raises(UserError, match="changed nothing"):
            sensitivity.summarise(*measured, NAMES, 0.05)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("sensitivity")


class TestCommand:
    OPTIONS = ["DATASET.NUM_SHOTS", "1", "DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.MAX_EPOCH", "1"]

    @pytest.fixture
    def command(self, monkeypatch, capsys):
        monkeypatch.chdir(ROOT)

        def command(*words):
            code = sensitivity.main(["--images", "8", *map(str, words), *self.OPTIONS])
            written = capsys.readouterr()
            return code, written.out, written.err

        return command

    def test_it_fine_tunes_measures_and_finds_the_run_again(self, command, run_folder):
        code, out, err = command("--output-dir", run_folder, "--json", run_folder / "a.json")
        assert code == 0, err
        found = json.loads((run_folder / "a.json").read_text())
        assert found["images"] == 8 and len(found["dependence"]) == 216
        assert [len(found["sensitivity"][tower]) for tower in ("image", "text")] == [12, 12]
        assert f"TRAINER.SKIPTUNING.OMEGA {found['omega']}, " in out

        code, out, err = command("--model-dir", run_folder, "--json", run_folder / "b.json")
        again = json.loads((run_folder / "b.json").read_text())
        assert code == 0 and "Finish training" not in out, err
        assert again == found

    def test_the_plot_lies_with_the_model(self, command, run_folder):
        pytest.importorskip("matplotlib")
        command("--output-dir", run_folder)
        assert (run_folder / "sensitivity.png").read_bytes().startswith(b"\x89PNG")

    @pytest.mark.parametrize(
        "words, message",
        [
            (["--images", "0"], "--images is 0"),
            (["--model-dir", "nowhere"], "nowhere"),
            (["--trainer", "ZeroshotCLIP", "--model-dir", "nowhere"], "not ZeroshotCLIP"),
            (["--config-file", "nowhere.yaml"], "nowhere.yaml"),
        ],
    )
    def test_bad_input_is_one_line(self, command, words, message):
        code, _, err = command(*words)
        assert code == 1 and message in err and err.startswith("Error: ") and len(err.splitlines()) == 1
