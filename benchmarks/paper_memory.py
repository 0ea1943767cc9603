"""The "Memory" of the paper's tables: an estimate by torchinfo of one half-precision training pass, not a measurement.

It counts the input, twice the outputs of the layers with parameters of their own (norms, the MLP's linear layers, the
patch and token embeddings), and those layers' parameters. It leaves out attention, the optimizer's state, gradients of
weights and everything done before training. In MB of 1e6 bytes, for ViT-B/16.
"""

MB = 1e6
LENGTH, WIDTH = {"image": 197, "text": 77}, {"image": 768, "text": 512}
VOCABULARY, PATCH = 49408, 16


def block(tower, number):
    """One residual block on `number` images or texts: outputs of its two norms and two linear layers, twice."""
    width = WIDTH[tower]
    outputs = number * LENGTH[tower] * (width + 4 * width + width + width)
    linear, norms = 2 * 4 * width**2 + 5 * width, 2 * 2 * width
    return (2 * 2 * outputs + 2 * linear + 4 * norms) / MB  # fp16, norms' parameters in fp32


def estimate(images, texts, blocks=12, pixels=True, tokens=None):
    """Memory of a step on `images` images and `texts` class texts through the last `blocks` blocks of both towers.

    pixels: the image tower starts from pixels instead of cached features (LSkip). tokens: the text tower starts from
    token ids (full fine-tuning) instead of features (LSkip) or embedded prompts; as `pixels` if None.
    """
    tokens = pixels if tokens is None else tokens
    image, text = LENGTH["image"] * WIDTH["image"], LENGTH["text"] * WIDTH["text"]
    total = blocks * (block("image", images) + block("text", texts)) + 2 * 2 * texts * text / MB  # and ln_final
    if not pixels:
        return total + 4 * images * image / MB
    stem = 2 * 2 * images * (2 * image - WIDTH["image"]) + 2 * 3 * PATCH**2 * WIDTH["image"]  # conv1 and ln_pre
    embedding = 2 * 4 * texts * text + 4 * VOCABULARY * WIDTH["text"] if tokens else 0  # in fp32
    return total + (4 * images * 3 * 224**2 + stem + embedding) / MB


def teacher(images):
    """What a frozen image tower adds that runs on the same images beside the one that learns."""
    return 12 * block("image", images)


def prompt_layer(texts):
    """What it adds that the prompts are put together by a layer which has parameters of its own."""
    return 2 * 2 * texts * LENGTH["text"] * WIDTH["text"] / MB
