"""CLIP score: cosine of image and text features of an open_clip model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Reward


class CLIPScore(Reward):
    """cos(image features, text features) by an open_clip model, (B,) in [-1, 1]; float32, weights frozen.

    model, tag: as open_clip takes them: ("ViT-L-14", "openai"), or "local-dir:folder" alone; antialias: how images
    are resized to the model's input, True as today's preprocessing does, False as the authors' code did.
    """

    def __init__(self, model: str, tag: str | None = None, *, device: str | None = None, antialias: bool = True,
                 name: str | None = None) -> None:
        import open_clip

        self.name = name or f"CLIPScore({model!r}{'' if tag is None else f', {tag!r}'})"
        self.antialias = antialias
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        known = (open_clip.get_pretrained_cfg(model, tag) if tag else None) or {}
        # the tag knows how the weights were trained; create_model alone would only warn about the other activation
        self.model = open_clip.create_model(model, pretrained=tag, device=self.device, force_quick_gelu=known.get("quick_gelu", False))
        self.model.float().eval().requires_grad_(False)
        self.tokenizer = open_clip.get_tokenizer(model)
        visual = self.model.visual
        size = visual.image_size
        self.size = (size, size) if isinstance(size, int) else tuple(size)
        as_pixel = lambda values: torch.tensor(values, device=self.device).view(1, 3, 1, 1)
        self.mean = as_pixel(visual.image_mean or open_clip.OPENAI_DATASET_MEAN)
        self.std = as_pixel(visual.image_std or open_clip.OPENAI_DATASET_STD)
        self._texts: dict[str, Tensor] = {}

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """(B, 3, H, W) in [0, 1] and B prompts to (B,); carries gradient to the images."""
        return (self.image_features(images) * self.text_features(prompts).to(images.device)).sum(1)

    def image_features(self, images: Tensor) -> Tensor:
        """Unit features of images, (B, F); carries gradient."""
        pixels = images.to(self.device, next(self.model.parameters()).dtype)
        if tuple(pixels.shape[-2:]) != self.size:
            pixels = F.interpolate(pixels, self.size, mode="bilinear", antialias=self.antialias)
        mean, std = self.mean.to(pixels.dtype), self.std.to(pixels.dtype)
        features = self.model.encode_image((pixels - mean) / std, normalize=True)
        return features.to(images.device)

    def text_features(self, prompts: Sequence[str]) -> Tensor:
        """Unit features of prompts, (B, F), each prompt encoded once."""
        new = [p for p in dict.fromkeys(prompts) if p not in self._texts]
        if new:
            with torch.no_grad():
                features = self.model.encode_text(self.tokenizer(new).to(self.device), normalize=True)
            self._texts.update(zip(new, features, strict=True))
        return torch.stack([self._texts[p] for p in prompts])
