"""CoCoOp's formula (Sec. 3.2) against a plain re-computation."""

import torch
import torch.nn.functional as F

from clip import clip


def plain_logits(model, images, names, context, meta_net):
    """Row by row: the text tower once for each image, with its own context."""
    tokens = clip.tokenize([f"a photo of a {name}." for name in names])
    rows = []
    for feature in F.normalize(model.encode_image(images), dim=-1):
        hidden = (meta_net.linear1.weight @ feature + meta_net.linear1.bias).clamp(min=0)
        shift = meta_net.linear2.weight @ hidden + meta_net.linear2.bias
        vectors = (context + shift + model.positional_embedding[1:5])[:, None].expand(-1, len(names), -1)
        text = model.encode_text(tokens, edit=lambda i, x, v=vectors: x if i else torch.cat([x[:1], v, x[5:]]))
        rows.append(model.logit_scale.exp() * F.normalize(text, dim=-1) @ feature)
    return torch.stack(rows)


def test_logits_and_gradients_are_those_of_the_formula(make_trainer, random_clip):
    trainer = make_trainer("CoCoOp")
    context, meta_net = trainer.learned["context"].ctx, trainer.learned["meta_net"]
    images, label = torch.randn(3, 3, 32, 32), torch.tensor([0, 3, 7])
    logits, terms = trainer.loss(trainer.frozen_features(images), label)
    expected = plain_logits(random_clip, images, trainer.classnames, context, meta_net)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert logits.detach().std(dim=0).max() > 0  # images differ
    weights = list(trainer.learned.parameters())
    found = torch.autograd.grad(terms["ce"], weights)
    plain = torch.autograd.grad(F.cross_entropy(expected, label), weights)
    for ours, theirs in zip(found, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * theirs.abs().max().item())


def test_every_test_image_gets_prompts_of_its_own(make_trainer):
    trainer = make_trainer("CoCoOp")
    trainer.test()
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        alone = torch.cat([trainer.model_inference(image[None]) for image in images])
        torch.testing.assert_close(trainer.model_inference(images), alone, rtol=1e-4, atol=1e-4)
