"""CoPrompt's adapters, views, sentences and loss against plain re-computations."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from clip import clip
from dassl.utils import MissingFile, UserError
from trainers.coprompt import read_sentences
from trainers.frozen import ensemble

OPTS = ["DATALOADER.K_TRANSFORMS", "2", "TRAINER.COPROMPT.PROMPT_DEPTH", "2", "TRAINER.COPROMPT.LAMBDA", "3.0"]


def adapted(adapter, x, share):
    down, up = (adapter.get_submodule(name).weight for name in ("down", "up"))
    return share * ((x @ down.t()).clamp(min=0) @ up.t()).clamp(min=0) + (1 - share) * x


def plain_terms(trainer, image, label, sentences):
    """CE and consistency, with the prompted towers (MaPLe's, see its test) taken as they are."""
    prompts = trainer.learned["prompts"]
    g = adapted(trainer.learned["text"], trainer.encode_text(*prompts.text.prompts()), 0.2)
    f = adapted(trainer.learned["image"], trainer.encode_image(image[0], prompts.image()), 0.1)
    g, f, h, f_zs = (F.normalize(x, dim=-1) for x in (g, f, sentences, trainer.clip_model.encode_image(image[1])))
    apart = (1 - (g * h).sum(dim=-1)).mean() + (1 - (f * f_zs).sum(dim=-1)).mean()
    ce = F.cross_entropy(trainer.clip_model.logit_scale.exp() * f @ g.t(), label)
    return {"ce": ce, "consistency": 3 * apart}


def test_without_sentences_the_ensemble_stands_in_and_the_log_says_so(make_trainer, random_clip, capsys):
    trainer = make_trainer("CoPrompt", *OPTS)
    image, label = torch.randn(2, 3, 3, 32, 32), torch.tensor([0, 5, 2])
    trainer.prepare()
    _, terms = trainer.loss(image, label)
    assert "No TRAINER.COPROMPT.SENTENCES: the mean of 60 templates stands in" in capsys.readouterr().out
    prompts = [[prompt.format(name) for name in trainer.classnames] for prompt in ensemble()]
    mean = sum(random_clip.encode_text(clip.tokenize(each)) for each in prompts) / 60  # (C, E)
    assert_close(terms, plain_terms(trainer, image, label, mean), rtol=1e-3, atol=1e-4)


def test_one_sentence_of_the_same_number_for_each_class_is_drawn_in_each_step(make_trainer, random_clip, tmp_path):
    trainer = make_trainer("CoPrompt", *OPTS, "TRAINER.COPROMPT.SENTENCES", str(tmp_path / "sentences.json"))
    texts = [[f"the {name} is nice", f"look, {name}"] for name in trainer.classnames]
    names = trainer.dm.dataset.classnames  # one with an underscore
    (tmp_path / "sentences.json").write_text(json.dumps(dict(zip(names, texts, strict=True))))
    image, label = torch.randn(2, 3, 3, 32, 32), torch.tensor([0, 5, 2])
    trainer.prepare()
    expected = []
    for number in range(2):
        features = random_clip.encode_text(clip.tokenize([each[number] for each in texts]))
        expected.append(plain_terms(trainer, image, label, features)["consistency"].item())
    found = {round(trainer.loss(image, label)[1]["consistency"].item(), 4) for _ in range(12)}
    assert sorted(found) == pytest.approx(sorted(expected), rel=1e-3) and len(found) == 2


def test_every_image_comes_as_two_different_views(make_trainer):
    trainer = make_trainer("CoPrompt", *OPTS, "INPUT.TRANSFORMS", '["randaugment", "normalize"]')
    first, second = next(iter(trainer.train_loader_x))["img"]
    assert first.shape == second.shape == (4, 3, 32, 32) and not torch.equal(first, second)
    (test,) = next(iter(trainer.test_loader))["img"][:1]
    assert test.shape == (3, 32, 32)


@pytest.mark.parametrize(
    "content, message",
    [
        ("[1]", 'must hold JSON like {"cat"'),
        (
            json.dumps({"red box": ["x"], "cat": ["a cat " * 40]}),
            "json\", 'cat': shorten the sentence. Input a cat a cat",
        ),
        ("{", 'must hold JSON like {"cat"'),
        ('{"red box": ["x"]}', "has no sentences for 1 of 2 classes: add 'cat'"),
        ('{"red_box": ["x"], "cat": []}', "has no sentences for 1 of 2 classes: add 'cat'"),
        ('{"red_box": ["x"], "cat": "y"}', "must hold JSON like .*each class has a list"),
        ('{"red_box": ["x"], "cat": ["y", "z"]}', "equally many sentences for each class: cut all lists to 1"),
    ],
)
def test_a_file_of_sentences_that_does_not_fit_is_one_clear_error(tmp_path, content, message):
    path = tmp_path / "sentences.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_sentences(str(path), ["red box", "cat"])


def test_a_missing_file_of_sentences_is_named(tmp_path):
    with pytest.raises(MissingFile, match="none.json.*TRAINER.COPROMPT.SENTENCES"):
        read_sentences(str(tmp_path / "none.json"), ["cat"])
