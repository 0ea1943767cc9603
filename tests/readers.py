"""What tests/test_export.py runs in processes of their own, which know nothing of this project."""

# Both print, for each folder, the logits of the same pixels, and of the image files by their own preprocessing.
OPEN_CLIP = """
import json, sys, numpy, torch, open_clip
from PIL import Image
pixels, paths = torch.from_numpy(numpy.load(sys.argv[1])), json.loads(sys.argv[2])
found = []
for folder, prompt in json.loads(sys.argv[3]):
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    names = open(f"{folder}/classes.txt").read().splitlines()
    texts = tokenizer([prompt.format(name) for name in names])
    images = torch.stack([preprocess(Image.open(path).convert("RGB")) for path in paths])
    with torch.no_grad():
        found.append([model.get_logits(each, texts)[0].tolist() for each in (pixels, images)])
print(json.dumps(found))
"""
TRANSFORMERS = """
import json, sys, numpy, torch, transformers
from PIL import Image
pixels, paths = torch.from_numpy(numpy.load(sys.argv[1])), json.loads(sys.argv[2])
found = []
for folder, prompt in json.loads(sys.argv[3]):
    model = transformers.CLIPModel.from_pretrained(folder)
    processor = transformers.CLIPProcessor.from_pretrained(folder)
    names = open(f"{folder}/classes.txt").read().splitlines()
    texts, images = [prompt.format(name) for name in names], [Image.open(path).convert("RGB") for path in paths]
    inputs = processor(text=texts, images=images, padding=True, return_tensors="pt")
    with torch.no_grad():
        by_files = model(**inputs).logits_per_image
        inputs["pixel_values"] = pixels
        found.append([model(**inputs).logits_per_image.tolist(), by_files.tolist()])
print(json.dumps(found))
"""

# Prints the outputs for the first 1, 2, 7 and 64 images.
ONNX = """
import json, sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
images = numpy.load(sys.argv[2])
print(json.dumps([session.run(None, {"image": images[:n]})[0].tolist() for n in (1, 2, 7, 64)]))
"""
