"""The README.md of an exported model: its facts come from result.json, and its code was run (tests/test_export.py)."""

import json
from collections.abc import Mapping, Sequence

from .origins import Facts

BASES = {  # of OpenAI's names on the Hub
    "ViT-B/32": "openai/clip-vit-base-patch32",
    "ViT-B/16": "openai/clip-vit-base-patch16",
    "ViT-L/14": "openai/clip-vit-large-patch14",
    "ViT-L/14@336px": "openai/clip-vit-large-patch14-336",
}


def model_card(
    result: Mapping,
    facts: Facts,
    prompts: str | Sequence[str],
    rounding: tuple[float, float] | None,
    tests: Sequence[tuple[Mapping, str]],
) -> str:
    """Markdown with the Hub's front matter.

    result: the run's result.json; prompts: with {} for the class; of several the mean was tested; rounding: shares of
    numbers that training changed, and of these lost in fp16; tests: result.json of each test of the weights, and what
    it used that is not in the files, which has no part in their accuracy ("" for nothing).
    """
    method, dataset, backbone = result["trainer"], result["dataset"], result["backbone"]
    shots = f"{result['shots']} shots" if result["shots"] > 0 else "all training images"
    prompts = [prompts] if isinstance(prompts, str) else prompts
    first = json.dumps(prompts[0])
    return "\n".join(
        [
            *_front_matter(backbone),
            f"# {backbone}, {method} on {dataset}",
            "",
            f"A CLIP with {facts.vision_layers} + {facts.text_layers} blocks, tuned by {method} on {dataset}: {shots}, "
            f"seed {result['seed']}, {result['subsample']} classes ({len(result['classnames'])}), "
            f"{_prompts(prompts)}.",
            "",
            *_tested(tests),
            "",
            f"Activation {facts.activation}, {facts.vision_heads} + {facts.text_heads} heads, images of "
            f"{facts.image_size} pixels, mean {list(facts.mean)}, std {list(facts.std)}. These travel in the files.",
            *_training(result),
            "",
            _rounding(rounding),
            "",
            "## Use",
            "",
            "From this folder, with open_clip:",
            "",
            "```python",
            _OPEN_CLIP.format(prompt=first),
            "```",
            "",
            "or with transformers:",
            "",
            "```python",
            _TRANSFORMERS.format(prompt=first),
            "```",
            "",
        ]
    )


def _front_matter(backbone):
    lines = ["library_name: open_clip", "pipeline_tag: zero-shot-image-classification", "tags: [clip, few-shot]"]
    if backbone in BASES:
        lines.append(f"base_model: {BASES[backbone]}")
    elif backbone.startswith("hf:"):
        lines.append(f"base_model: {backbone.removeprefix('hf:').partition('@')[0]}")
    return ["---", *lines, "---", ""]


def _prompts(prompts):
    shown = [f"`{prompt}`" for prompt in prompts]
    if len(shown) == 1:
        return f"prompt {shown[0]}"
    return (
        f"prompts {', '.join(shown)}. What was tested is the mean of their unit text features; the code below takes "
        "the first prompt alone"
    )


def _tested(tests):
    """A table of what the files can give, and a sentence for each other test."""
    tests = [(result, left_out) for result, left_out in tests if result.get("accuracy") is not None]
    rows = [_row(result) for result, left_out in tests if not left_out]
    lines = ["| classes | number | test images | accuracy |", "|---|---|---|---|", *rows] if rows else []
    for result, left_out in tests:
        if left_out:
            classes = "all classes" if result["subsample"] == "all" else f"the {result['subsample']} classes"
            lines += [""] * bool(lines) + [f"On {classes} it was tested with {left_out} that is not in these files."]
    return lines or ["Not tested."]


def _row(result):
    accuracy = f"{result['accuracy']:.2f}%"
    return f"| {result['subsample']} | {len(result['classnames'])} | {result['total']} | {accuracy} |"


def _training(result):
    """One line for each fact that this version of result.json has."""
    lines = []
    for key, words in (
        ("epochs", "Epochs: {}"),
        ("learned_parameters", "Learned parameters: {:,}"),
        ("preset", "Preset: {}"),
        ("split", "SHA-256 of the split: {}"),
        ("images", "SHA-256 of the list of images: {}"),
    ):
        if result.get(key):
            lines.append(f"- {words.format(result[key])}")
    return ["", *lines] if lines else []


def _rounding(rounding):
    if rounding is None:
        return "No weight differs from the model that it was made from."
    changed, lost = rounding
    return (
        f"The weights are fp32. {changed:.1%} of their numbers differ from those of the model that it was made from; "
        f"rounding to fp16 takes back {lost:.1%} of these changes, so measure before you store it in fp16."
    )


_OPEN_CLIP = """import open_clip, torch
from PIL import Image

model, preprocess = open_clip.create_model_from_pretrained("local-dir:.")
tokenizer = open_clip.get_tokenizer("local-dir:.")
names = open("classes.txt", encoding="utf-8").read().splitlines()
image = preprocess(Image.open("image.png").convert("RGB"))[None]
texts = tokenizer([{prompt}.replace("{{}}", name) for name in names])
with torch.no_grad():
    logits, _ = model.get_logits(image, texts)
print(names[logits.argmax()])"""

_TRANSFORMERS = """from transformers import pipeline

names = open("classes.txt", encoding="utf-8").read().splitlines()
classify = pipeline("zero-shot-image-classification", model=".")
print(classify("image.png", candidate_labels=names, hypothesis_template={prompt})[0]["label"])"""
