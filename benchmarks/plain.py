"""Skip Tuning written down plainly, as the paper does, with none of the exact savings: what the trainer is measured and
tested against.

All 77 tokens of every text, all tokens in every block, CLIP's modules as OpenAI wrote them, one optimizer step after
the backward pass, all weights in memory.
"""

import torch
import torch.nn.functional as F

from trainers.parts.cskip import masked_cross_entropy, sample_classes


def run_blocks(blocks, x, mask=None):
    """x (L, N, D) through residual attention blocks; mask (L, L), additive."""
    for block in blocks:
        y = block.ln_1(x)
        x = x + block.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        h = block.mlp.c_fc(block.ln_2(x))
        x = x + block.mlp.c_proj(h * torch.sigmoid(1.702 * h))
    return x


def shallow_image(visual, image, omega):
    """image (N, 3, H, W) -> v^omega (L, N, D)."""
    x = visual.conv1(image).flatten(2).transpose(1, 2)
    first = visual.class_embedding.expand(len(x), 1, -1)
    x = visual.ln_pre(torch.cat([first, x], dim=1) + visual.positional_embedding)
    return run_blocks(visual.transformer.resblocks[:omega], x.transpose(0, 1))


def deep_image(visual, v, omega):
    """v^omega (L, N, D) -> image features (N, E)."""
    x = run_blocks(visual.transformer.resblocks[omega:], v)
    return visual.ln_post(x[0]) @ visual.proj


def shallow_text(clip_model, tokens, omega):
    """tokens (C, 77) -> t^omega (77, C, D)."""
    x = clip_model.token_embedding(tokens) + clip_model.positional_embedding
    return run_blocks(clip_model.transformer.resblocks[:omega], x.transpose(0, 1), clip_model.build_attention_mask())


def deep_text(clip_model, t, tokens, omega):
    """t^omega (77, C, D) of tokens (C, 77) -> class features (C, E)."""
    x = run_blocks(clip_model.transformer.resblocks[omega:], t, clip_model.build_attention_mask())
    x = clip_model.ln_final(x).transpose(0, 1)
    return x[torch.arange(len(x)), tokens.argmax(dim=-1)] @ clip_model.text_projection


class PlainStep:
    """One training step.

    Args:
        clip_model: fp32; its blocks behind `omega`, final norms and projections are trained in place.
        tokens: of the class texts (C, 77).
        omega: the blocks that LSkip skips; 0 is no layer skipping.
        t: t^omega (77, C, D).
        probability: of each rank, for CSkip (C,); None is no class skipping.
        zero_shot: unit class features by which CSkip ranks (C, E).
    """

    def __init__(self, clip_model, tokens, omega, t, probability=None, zero_shot=None, lr=2e-5):
        self.clip_model = clip_model.requires_grad_(False)
        self.tokens = tokens
        self.omega = omega
        self.t = t
        self.probability = probability
        self.zero_shot = zero_shot
        self.generator = torch.Generator().manual_seed(1)
        towers = clip_model.transformer.resblocks, clip_model.visual.transformer.resblocks
        modules = *towers[0][omega:], *towers[1][omega:], clip_model.ln_final, clip_model.visual.ln_post
        self.learned = [p for module in modules for p in module.parameters()]
        self.learned += [clip_model.text_projection, clip_model.visual.proj]
        for p in self.learned:
            p.requires_grad_(True)
        self.optimizer = torch.optim.SGD(self.learned, lr, momentum=0.9, weight_decay=5e-4)

    def loss(self, v, labels):
        """Eq. 1: v^omega (L, B, D), labels (B,)."""
        image_features = F.normalize(deep_image(self.clip_model.visual, v, self.omega), dim=-1)  # (B, E)
        t, tokens, by_image = self.t, self.tokens, None
        if self.probability is not None:
            scores = image_features.detach() @ self.zero_shot.t()
            kept, by_image = sample_classes(scores, labels, self.probability, self.generator, "batch")
            t, tokens, labels = t[:, kept], tokens[kept], torch.searchsorted(kept, labels)
        text_features = F.normalize(deep_text(self.clip_model, t, tokens, self.omega), dim=-1)  # (K, E)
        logits = self.clip_model.logit_scale.exp() * image_features @ text_features.t()  # (B, K)
        return masked_cross_entropy(logits, labels, by_image)

    def __call__(self, v, labels):
        loss = self.loss(v, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()
