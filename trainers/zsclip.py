"""ZeroshotCLIP (Radford et al., ICML 2021): CLIP as it is, one hand-written prompt per data set, nothing learned."""

import torch
import torch.nn.functional as F

from clip import clip
from dassl.engine import TRAINER_REGISTRY, TrainerX

# CoOp's prompts; data sets that are not listed use "a photo of a {}.".
TEMPLATES = {
    "OxfordPets": "a photo of a {}, a type of pet.",
    "OxfordFlowers": "a photo of a {}, a type of flower.",
    "FGVCAircraft": "a photo of a {}, a type of aircraft.",
    "DescribableTextures": "{} texture.",
    "EuroSAT": "a centered satellite photo of {}.",
    "Food101": "a photo of {}, a type of food.",
    "UCF101": "a photo of a person doing {}.",
    "Emoji": "an emoji of a {}.",
}


@TRAINER_REGISTRY.register()
class ZeroshotCLIP(TrainerX):
    def build_model(self):
        cfg = self.cfg
        print(f"Loading CLIP (backbone: {cfg.MODEL.BACKBONE.NAME})")
        clip_model, _ = clip.load(cfg.MODEL.BACKBONE.NAME, device="cpu")
        self.clip_model = clip_model.float().to(self.device)
        template = cfg.DATASET.TEMPLATE or TEMPLATES.get(cfg.DATASET.NAME, "a photo of a {}.")
        prompts = [template.format(name.replace("_", " ")) for name in self.dm.dataset.classnames]
        with torch.no_grad():
            features = self.clip_model.encode_text(clip.tokenize(prompts).to(self.device))
        self.text_features = F.normalize(features, dim=-1)  # (C, E)

    def model_inference(self, image):
        """image (N, 3, H, W) -> logits (N, C)."""
        image_features = F.normalize(self.clip_model.encode_image(image), dim=-1)
        return self.clip_model.logit_scale.exp() * image_features @ self.text_features.t()
