"""The smallest CLIP that takes the tokenizer's numbers."""

TINY = dict(
    embed_dim=48,
    image_resolution=32,
    vision_layers=3,
    vision_width=128,
    vision_patch_size=16,
    context_length=77,
    vocab_size=49408,
    transformer_width=64,
    transformer_heads=1,
    transformer_layers=3,
)
