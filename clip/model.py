"""CLIP's two towers in OpenAI's shape: the same module names, state-dict keys and (L, N, D) activations.

Notation: N images or texts, L tokens, D width of a tower, E width of the joint space.
Inside the blocks the order is (L, N, D), outside it is (N, L, D), as in Radford et al. (2021).

`Transformer.forward` takes one hook, `edit(i, x)`, which may rewrite the sequence just before block i. It is the plain
form of what prompt-learning methods do: tests compare trainers/parts/prompts.py with it.
"""

import functools
from collections import OrderedDict
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import WeightsError
from .origins import PIXEL_MEAN, PIXEL_STD, Facts, openai_facts, sizes_of

Edit = Callable[[int, Tensor], Tensor]

# What OpenAI's archives store beside the weights; build_model infers them from shapes instead.
ARCHIVE_SCALARS = ("input_resolution", "context_length", "vocab_size")


class LayerNorm(nn.LayerNorm):
    """Layer normalisation computed in fp32 whatever the dtype of x or of the weights; returns x's dtype."""

    def forward(self, x):
        y = F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)
        return y.to(x.dtype)


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), written as silu(1.702 x) / 1.702: one fused kernel instead of three, in place."""

    def forward(self, x):
        y = 1.702 * x
        return F.silu(y, inplace=not y.requires_grad).div_(1.702)


ACTIVATIONS = {"quick_gelu": QuickGELU, "gelu": nn.GELU}


class ResidualAttentionBlock(nn.Module):
    """One pre-norm block; `d_mlp` is the hidden width of its MLP.

    `attn_mask` is additive, (context, context), and is cut to the sequence's length.
    """

    def __init__(self, d_model, n_head, attn_mask=None, d_mlp=None, activation="quick_gelu"):
        super().__init__()
        self.attn = nn.MultiheadAttention(d_model, n_head)
        self.ln_1 = LayerNorm(d_model)
        d_mlp = d_mlp or d_model * 4
        self.mlp = nn.Sequential(
            OrderedDict(
                c_fc=nn.Linear(d_model, d_mlp),
                gelu=ACTIVATIONS[activation](),
                c_proj=nn.Linear(d_mlp, d_model),
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
    """`layers` blocks of `width` channels with `heads` heads."""

    def __init__(self, width, layers, heads, attn_mask=None, mlp=None, activation="quick_gelu"):
        super().__init__()
        self.width = width
        self.layers = layers
        blocks = [ResidualAttentionBlock(width, heads, attn_mask, mlp, activation) for _ in range(layers)]
        self.resblocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor, edit: Edit | None = None) -> Tensor:
        """x (L, N, D) -> (L, N, D). `edit(i, x)` may rewrite the sequence just before block i (from 0)."""
        for i, block in enumerate(self.resblocks):
            x = block(edit(i, x) if edit else x)
        return x


class VisionTransformer(nn.Module):
    """The image tower; its images are squares of `input_resolution` pixels."""

    def __init__(
        self, input_resolution, patch_size, width, layers, heads, output_dim, mlp=None, activation="quick_gelu"
    ):
        super().__init__()
        self.input_resolution = input_resolution
        self.output_dim = output_dim
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size, bias=False)
        scale = width**-0.5
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        tokens = (input_resolution // patch_size) ** 2 + 1
        self.positional_embedding = nn.Parameter(scale * torch.randn(tokens, width))
        self.ln_pre = LayerNorm(width)
        self.transformer = Transformer(width, layers, heads, mlp=mlp, activation=activation)
        self.ln_post = LayerNorm(width)
        self.proj = nn.Parameter(scale * torch.randn(width, output_dim))

    def embed(self, image: Tensor) -> Tensor:
        """image (N, 3, H, W) -> (N, L, D): class token, then the patches, with positions, before ln_pre."""
        x = self.conv1(image).flatten(2).transpose(1, 2)  # (N, L - 1, D)
        first = self.class_embedding.to(x).expand(x.shape[0], 1, -1)
        return torch.cat([first, x], dim=1) + self.positional_embedding.to(x)

    def forward(self, image: Tensor, edit: Edit | None = None) -> Tensor:
        """image (N, 3, H, W) -> (N, E), not normalised."""
        x = self.ln_pre(self.embed(image)).transpose(0, 1)  # (L, N, D)
        x = self.transformer(x, edit)
        return self.ln_post(x[0]) @ self.proj.to(x.dtype)


class CLIP(nn.Module):
    """Both towers, with the arguments of OpenAI's class, then those in which other makers' models differ.

    Heads of the image tower: one for 64 channels where not given; MLPs: four times the width. `facts` is what the
    model was loaded with, None for one that was not loaded.
    """

    facts: Facts | None = None

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
        vision_heads=None,
        vision_mlp=None,
        transformer_mlp=None,
        activation="quick_gelu",
    ):
        super().__init__()
        self.context_length = context_length
        self.vocab_size = vocab_size
        self.visual = VisionTransformer(
            image_resolution,
            vision_patch_size,
            vision_width,
            vision_layers,
            vision_heads or vision_width // 64,
            embed_dim,
            vision_mlp,
            activation,
        )
        self.transformer = Transformer(
            transformer_width,
            transformer_layers,
            transformer_heads,
            self.build_attention_mask(),
            transformer_mlp,
            activation,
        )
        self.token_embedding = nn.Embedding(vocab_size, transformer_width)
        self.positional_embedding = nn.Parameter(torch.empty(context_length, transformer_width))
        self.ln_final = LayerNorm(transformer_width)
        self.text_projection = nn.Parameter(torch.empty(transformer_width, embed_dim))
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())
        self.initialize_parameters()

    def initialize_parameters(self) -> None:
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

    def build_attention_mask(self) -> Tensor:
        """(context, context) additive causal mask: 0 on and below the diagonal, -inf above."""
        return torch.full((self.context_length, self.context_length), float("-inf")).triu(1)

    @property
    def dtype(self) -> torch.dtype:
        """That in which images enter."""
        return self.visual.conv1.weight.dtype

    def encode_image(self, image: Tensor, edit: Edit | None = None) -> Tensor:
        """image (N, 3, H, W) -> (N, E) in `dtype`, not normalised."""
        return self.visual(image.to(self.dtype), edit)

    def encode_text(self, text: Tensor, edit: Edit | None = None) -> Tensor:
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

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """image (N, 3, H, W), text (C, context) -> logits_per_image (N, C), logits_per_text (C, N)."""
        image_features = F.normalize(self.encode_image(image), dim=-1)
        text_features = F.normalize(self.encode_text(text), dim=-1)
        logits_per_image = self.logit_scale.exp() * image_features @ text_features.t()
        return logits_per_image, logits_per_image.t()


def convert_weights(model: nn.Module) -> None:
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


def build_model(state_dict: Mapping[str, Tensor], design_details: Mapping | None = None) -> CLIP:
    """OpenAI's function: the CLIP whose sizes the shapes of `state_dict` imply, rounded to OpenAI's mix, in eval mode.

    It takes OpenAI's facts for granted (origins.py), as every caller of OpenAI's does; `clip.load` is for weights of
    other origin, and doesn't round. `design_details` is what trainers of MaPLe's descendants pass; here it may only
    ask for plain blocks. Raises RuntimeError for a ResNet tower, for keys that don't fit, or for blocks with prompts.
    """
    if any(
        (design_details or {}).get(f"{tower}_{size}") for tower in ("vision", "language") for size in ("depth", "ctx")
    ):
        raise RuntimeError(
            "prompts in the blocks are not built here: use Transformer.forward's `edit`, or the fork's clip/"
        )
    model = assemble(state_dict, openai_facts(sizes_in(state_dict)))
    convert_weights(model)
    return model


def sizes_in(state_dict: Mapping[str, Tensor]) -> dict[str, int]:
    """The sizes among the facts (origins.py) of weights in OpenAI's names.

    Raises WeightsError, naming one weight, where names or shapes aren't those of one CLIP with a ViT; nothing large
    is allocated for that.
    """
    shapes = {key: tuple(value.shape) for key, value in state_dict.items() if key not in ARCHIVE_SCALARS}
    sizes = sizes_of(shapes)
    any_heads = Facts(activation="gelu", vision_heads=1, text_heads=1, mean=(), std=(), **sizes)
    expected = _shapes(any_heads)
    for key in sorted(expected.keys() | shapes.keys()):
        if key not in shapes or key not in expected:
            raise WeightsError(f"{key!r} is {'missing' if key in expected else 'no weight of a CLIP with a ViT'}")
        if shapes[key] != expected[key]:
            raise WeightsError(f"{key!r} has the shape {shapes[key]} instead of {expected[key]}")
    return sizes


@functools.lru_cache(maxsize=8)
def _shapes(facts):
    """{key: shape} of a CLIP of these sizes, which is asked for several times a run."""
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in _blank(facts).state_dict().items()}


def assemble(state_dict: Mapping[str, Tensor], facts: Facts) -> CLIP:
    """The CLIP with these weights (OpenAI's names) and facts, in fp32 on the default device, in eval mode."""
    model = _blank(facts)
    model.load_state_dict({key: value for key, value in state_dict.items() if key not in ARCHIVE_SCALARS})
    model.facts = facts
    return model.eval()


def facts_of(model: CLIP) -> Facts:
    """The facts that a model shows; mean, std and resizing are those that it was loaded with, else OpenAI's."""
    known = model.facts
    block, text_block = model.visual.transformer.resblocks[0], model.transformer.resblocks[0]
    return Facts(
        activation="quick_gelu" if isinstance(block.mlp.gelu, QuickGELU) else "gelu",
        vision_heads=block.attn.num_heads,
        text_heads=text_block.attn.num_heads,
        mean=known.mean if known else PIXEL_MEAN,
        std=known.std if known else PIXEL_STD,
        resize=known.resize if known else "shortest",
        **sizes_in(model.state_dict()),
    )


def _blank(facts):
    """A CLIP of these sizes with random weights."""
    return CLIP(
        embed_dim=facts.embed_dim,
        image_resolution=facts.image_size,
        vision_layers=facts.vision_layers,
        vision_width=facts.vision_width,
        vision_patch_size=facts.patch_size,
        context_length=facts.context_length,
        vocab_size=facts.vocab_size,
        transformer_width=facts.text_width,
        transformer_heads=facts.text_heads,
        transformer_layers=facts.text_layers,
        vision_heads=facts.vision_heads,
        vision_mlp=facts.vision_mlp,
        transformer_mlp=facts.text_mlp,
        activation=facts.activation,
    )
