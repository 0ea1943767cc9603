"""Zero-shot CLIP as trainer files for upstream Dassl and OpenAI's CLIP are written: nothing is learned."""

import torch

from clip import clip
from clip.model import convert_weights  # noqa: F401 (imported in nine of the published files, used in none)
from dassl.engine import TRAINER_REGISTRY, TrainerX

from .coop_like import load_clip_to_cpu


@TRAINER_REGISTRY.register()
class ZeroshotLike(TrainerX):
    def build_model(self):
        clip_model = load_clip_to_cpu(self.cfg)
        clip_model.to(self.device)
        prompts = [f"a photo of a {name.replace('_', ' ')}." for name in self.dm.dataset.classnames]
        prompts = torch.cat([clip.tokenize(prompt) for prompt in prompts]).to(self.device)
        with torch.no_grad():
            text_features = clip_model.encode_text(prompts)
            text_features = text_features / text_features.norm(dim=-1, keepdim=True)
        self.text_features = text_features
        self.clip_model = clip_model

    def model_inference(self, image):
        image_features = self.clip_model.encode_image(image)
        image_features = image_features / image_features.norm(dim=-1, keepdim=True)
        return self.clip_model.logit_scale.exp() * image_features @ self.text_features.t()
