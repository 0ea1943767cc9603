"""CLIP's two towers in OpenAI's shape: the same module names, state-dict keys and (L, N, D) activations.

Notation: N images or texts, L tokens, D width of a tower, E width of the joint space.
Inside the blocks the order is (L, N, D), outside it is (N, L, D), as in Radford et al. (2021).

`Transformer.forward` takes one hook, `edit(i, x)`, which may rewrite the sequence just before block i. Deep prompts of
every prompt-learning method are such an edit, so no method needs a copy of this file.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

# What OpenAI's archives store beside the weights; build_model infers them from shapes instead.
ARCHIVE_SCALARS = ("input_resolution", "context_length", "vocab_size")


class LayerNorm(nn.LayerNorm):
    """Layer normalisation computed in fp32 whatever the dtype of x or of the weights; returns x's dtype."""

    def forward(self, x):
        y = F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)
        return y.to(x.dtype)


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), written as silu(1.702 x) / 1.702: one fused kernel instead of three."""

    def forward(self, x):
        return F.silu(1.702 * x) / 1.702


class ResidualAttentionBlock(nn.Module):
    """One pre-norm block. `attn_mask` is additive, (context, context), and is cut to the sequence's length."""

    def __init__(self, d_model, n_head, attn_mask=None):
        super().__init__()
        self.attn = nn.MultiheadAttention(d_model, n_head)
        self.ln_1 = LayerNorm(d_model)
        self.mlp = nn.Sequential(
            OrderedDict(
                c_fc=nn.Linear(d_model, d_model * 4),
                gelu=QuickGELU(),
                c_proj=nn.Linear(d_model * 4, d_model),
            )
        )
        self.ln_2 = LayerNorm(d_model)
        self.attn_mask = attn_mask

    def attention(self, x):
        length = len(x)
        mask = None if self.attn_mask is None else self.attn_mask[:length, :length].to(x)
        return self.attn(x, x, x, need_weights=False, attn_mask=mask)[0]  # scaled_dot_product_attention inside

    def forward(self, x):
        x = x + self.attention(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width, layers, heads, attn_mask=None):
        super().__init__()
        self.width = width
        self.layers = layers
        self.resblocks = nn.Sequential(*[ResidualAttentionBlock(width, heads, attn_mask) for _ in range(layers)])

    def forward(self, x, edit=None):
        """x (L, N, D) -> (L, N, D). `edit(i, x)` may rewrite the sequence just before block i (from 0)."""
        for i, block in enumerate(self.resblocks):
            x = block(edit(i, x) if edit else x)
        return x


class VisionTransformer(nn.Module):
    def __init__(self, input_resolution, patch_size, width, layers, heads, output_dim):
        super().__init__()
        self.input_resolution = input_resolution
        self.output_dim = output_dim
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size, bias=False)
        scale = width**-0.5
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        tokens = (input_resolution // patch_size) ** 2 + 1
        self.positional_embedding = nn.Parameter(scale * torch.randn(tokens, width))
        self.ln_pre = LayerNorm(width)
        self.transformer = Transformer(width, layers, heads)
        self.ln_post = LayerNorm(width)
        self.proj = nn.Parameter(scale * torch.randn(width, output_dim))

    def embed(self, image):
        """image (N, 3, H, W) -> (N, L, D): class token, then the patches, with positions, before ln_pre."""
        x = self.conv1(image).flatten(2).transpose(1, 2)  # (N, L - 1, D)
        first = self.class_embedding.to(x).expand(len(x), 1, -1)
        return torch.cat([first, x], dim=1) + self.positional_embedding.to(x)

    def forward(self, image, edit=None):
        """image (N, 3, H, W) -> (N, E), not normalised."""
        x = self.ln_pre(self.embed(image)).transpose(0, 1)  # (L, N, D)
        x = self.transformer(x, edit)
        return self.ln_post(x[0]) @ self.proj.to(x.dtype)


class CLIP(nn.Module):
    def __init__(
        self,
        embed_dim,
        image_resolution,
        vision_layers,
        vision_width,
        vision_patch_size,
        context_length,
        vocab_size,
        transformer_width,
        transformer_heads,
        transformer_layers,
    ):
        super().__init__()
        self.context_length = context_length
        self.vocab_size = vocab_size
        self.visual = VisionTransformer(
            image_resolution, vision_patch_size, vision_width, vision_layers, vision_width // 64, embed_dim
        )
        self.transformer = Transformer(
            transformer_width, transformer_layers, transformer_heads, self.build_attention_mask()
        )
        self.token_embedding = nn.Embedding(vocab_size, transformer_width)
        self.positional_embedding = nn.Parameter(torch.empty(context_length, transformer_width))
        self.ln_final = LayerNorm(transformer_width)
        self.text_projection = nn.Parameter(torch.empty(transformer_width, embed_dim))
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())
        self.initialize_parameters()

    def initialize_parameters(self):
        """The initial distributions of CLIP's pre-training: depth-scaled normals in both towers."""
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        for tower in (self.visual.transformer, self.transformer):
            width_std = tower.width**-0.5
            depth_std = width_std * (2 * tower.layers) ** -0.5
            for block in tower.resblocks:
                nn.init.normal_(block.attn.in_proj_weight, std=width_std)
                nn.init.normal_(block.attn.out_proj.weight, std=depth_std)
                nn.init.normal_(block.mlp.c_fc.weight, std=(2 * tower.width) ** -0.5)
                nn.init.normal_(block.mlp.c_proj.weight, std=depth_std)
        nn.init.normal_(self.text_projection, std=self.transformer.width**-0.5)

    def build_attention_mask(self):
        """(context, context) additive causal mask: 0 on and below the diagonal, -inf above."""
        return torch.full((self.context_length, self.context_length), float("-inf")).triu(1)

    @property
    def dtype(self):
        return self.visual.conv1.weight.dtype

    def encode_image(self, image, edit=None):
        """image (N, 3, H, W) -> (N, E) in `dtype`, not normalised."""
        return self.visual(image.to(self.dtype), edit)

    def encode_text(self, text, edit=None):
        """text (N, context) token ids -> (N, E) in `dtype`, not normalised.

        Positions behind the last end-of-text token of the batch are cut off before the first block: the tower is
        causal, so they can't reach any feature, and for class names they are most of the 77.
        """
        end = text.argmax(dim=-1)  # (N,), end-of-text has the largest id
        length = int(end.max()) + 1
        x = self.token_embedding(text[:, :length]).to(self.dtype)  # (N, L, D)
        x = x + self.positional_embedding[:length].to(x)
        x = self.transformer(x.transpose(0, 1), edit).transpose(0, 1)  # (N, L, D)
        x = self.ln_final(x).to(self.dtype)
        return x[torch.arange(len(x), device=x.device), end] @ self.text_projection.to(x.dtype)

    def forward(self, image, text):
        """image (N, 3, H, W), text (C, context) -> logits_per_image (N, C), logits_per_text (C, N)."""
        image_features = F.normalize(self.encode_image(image), dim=-1)
        text_features = F.normalize(self.encode_text(text), dim=-1)
        logits_per_image = self.logit_scale.exp() * image_features @ text_features.t()
        return logits_per_image, logits_per_image.t()


def convert_weights(model):
    """Halve what OpenAI's archives hold in fp16: convolutions, linear layers, attention and the two projections.

    Layer norms, embeddings, positions and the logit scale stay fp32.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            module.half()
        elif isinstance(module, nn.MultiheadAttention):
            # Not module.half(): out_proj is a Linear and halves itself, the packed projection is a bare parameter.
            module.in_proj_weight.data = module.in_proj_weight.data.half()
            module.in_proj_bias.data = module.in_proj_bias.data.half()
        for name in ("text_projection", "proj"):
            parameter = getattr(module, name, None)
            if isinstance(parameter, nn.Parameter):
                parameter.data = parameter.data.half()


def build_model(state_dict, design_details=None):
    """The CLIP whose sizes the shapes of `state_dict` imply, in fp16 as OpenAI's, in eval mode.

    `design_details` is what trainers of MaPLe's descendants pass; here it may only ask for plain blocks.
    Raises RuntimeError for a ResNet tower, for keys that don't fit, or for blocks that hold prompts.
    """
    if any(
        (design_details or {}).get(f"{tower}_{size}") for tower in ("vision", "language") for size in ("depth", "ctx")
    ):
        raise RuntimeError(
            "prompts in the blocks are not built here: use Transformer.forward's `edit`, or the fork's clip/"
        )
    if "visual.proj" not in state_dict:
        raise RuntimeError("these weights hold no vision transformer (no 'visual.proj'): use a ViT backbone")
    weights = {key: value for key, value in state_dict.items() if key not in ARCHIVE_SCALARS}
    patch_embedding = weights["visual.conv1.weight"]  # (D, 3, patch, patch)
    patch_size = patch_embedding.shape[-1]
    grid = round((len(weights["visual.positional_embedding"]) - 1) ** 0.5)
    width = weights["ln_final.weight"].shape[0]
    model = CLIP(
        embed_dim=weights["text_projection"].shape[1],
        image_resolution=patch_size * grid,
        vision_layers=_depth(weights, "visual.transformer.resblocks."),
        vision_width=patch_embedding.shape[0],
        vision_patch_size=patch_size,
        context_length=len(weights["positional_embedding"]),
        vocab_size=len(weights["token_embedding.weight"]),
        transformer_width=width,
        transformer_heads=width // 64,
        transformer_layers=_depth(weights, "transformer.resblocks."),
    )
    convert_weights(model)
    model.load_state_dict(weights)
    return model.eval()


def _depth(weights, prefix):
    return len({key[len(prefix) :].split(".")[0] for key in weights if key.startswith(prefix)})
