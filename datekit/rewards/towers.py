"""The two towers of a CLIP behind one door, whichever library they come from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from .network import CLIP_MEAN, CLIP_STD, NetworkReward


class OpenCLIP:
    """An open_clip model: name and tag (or a file of weights), "local-dir:..." or "hf-hub:..."."""

    def __init__(self, model: str, tag: str | None = None) -> None:
        import open_clip

        # The tag knows how the weights were trained: create_model alone would only warn about
        # the other activation.
        known = (open_clip.get_pretrained_cfg(model, tag) if tag else None) or {}
        self.network = open_clip.create_model(
            model, pretrained=tag, device="cpu", force_quick_gelu=known.get("quick_gelu", False)
        )
        visual = self.network.visual
        self.size = visual.image_size
        self.mean, self.std = visual.image_mean or CLIP_MEAN, visual.image_std or CLIP_STD
        self.resize_mode = visual.preprocess_cfg["resize_mode"]
        self.tokenizer = open_clip.get_tokenizer(model)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Features of normalised pixels, (B, F)."""
        return self.network.encode_image(pixels)

    def encode_text(self, prompt: str, device: torch.device) -> Tensor:
        """Features of a prompt, (1, F); the tokenizer cuts what is too long."""
        return self.network.encode_text(self.tokenizer([prompt]).to(device))


class TransformersCLIP:
    """A transformers `CLIPModel` from a hub id or folder.

    processor: where tokenizer and preprocessing are, if elsewhere. An odd margin is cut as
    torchvision cuts it, which may be one pixel from where transformers does.
    """

    def __init__(self, source: str, processor: str | None = None) -> None:
        from transformers import AutoConfig, AutoTokenizer, CLIPImageProcessor, CLIPModel

        config = AutoConfig.from_pretrained(source)
        if config.model_type != "clip":
            raise ValueError(f"{source} holds no CLIP model, but one of type {config.model_type!r}")
        self.network = CLIPModel.from_pretrained(source)
        self.size = config.vision_config.image_size
        self.tokenizer = AutoTokenizer.from_pretrained(processor or source)
        images = CLIPImageProcessor.from_pretrained(processor or source)
        if not (images.do_rescale and images.do_normalize and images.rescale_factor == 1 / 255):
            raise ValueError(f"{source} does not take normalised pictures, as its processor says")
        self.mean, self.std, self.resize_mode = images.image_mean, images.image_std, None
        square, size = {"height": self.size, "width": self.size}, dict(images.size)
        cut = images.do_center_crop and dict(images.crop_size) == square
        if images.do_resize and cut and size == {"shortest_edge": self.size}:
            self.resize_mode = "shortest"
        elif images.do_resize and not images.do_center_crop and size == square:
            self.resize_mode = "squash"

    def encode_image(self, pixels: Tensor) -> Tensor:
        return self.network.visual_projection(self.network.vision_model(pixels).pooler_output)

    def encode_text(self, prompt: str, device: torch.device) -> Tensor:
        length = self.network.config.text_config.max_position_embeddings
        sizes = {"padding": "max_length", "truncation": True, "max_length": length}
        tokens = self.tokenizer([prompt], return_tensors="pt", **sizes).to(device)
        pooled = self.network.text_model(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
        ).pooler_output
        return self.network.text_projection(pooled)


def towers(model: str | Path, tag: str | None = None) -> OpenCLIP | TransformersCLIP:
    """The towers of `CLIPScore(model, tag)`. Raises ValueError for a name that leads nowhere.

    With a tag, or a colon in the name, they are open_clip's; a folder is known by what is in it.
    """
    name, folder = str(model), Path(model)
    if tag is not None or ":" in name:
        return OpenCLIP(name, tag)
    if (folder / "open_clip_config.json").is_file():
        return OpenCLIP(f"local-dir:{folder}")
    if folder.is_dir() or name.count("/") == 1:
        return TransformersCLIP(name)
    raise ValueError(f"{name!r} is no folder and no hub id; a model of open_clip needs a tag too")


class TowerReward(NetworkReward):
    """A reward on CLIP features; `__post_init__` gives `hold_towers` the towers."""

    kind = "reward"  # said here, as this class alone is no reward that could be asked for by name

    def hold_towers(self, towers: OpenCLIP | TransformersCLIP) -> None:
        """Keep the towers, frozen and in float32.

        Raises ValueError for fit="own" where their own preprocessing is not followed here.
        """
        if self.fit == "own" and towers.resize_mode is None:
            raise ValueError("these towers cut and resize in a way of their own; take fit='squash'")
        self.hold(towers.network, towers.size, towers.mean, towers.std)
        self.towers, self._texts, self.resize_mode = towers, {}, towers.resize_mode

    def image_features(self, images: Tensor) -> Tensor:
        """Unit features of images, (B, F); carries gradient."""
        return F.normalize(self.towers.encode_image(self.pixels(images)), dim=-1)

    def text_features(self, prompts: Sequence[str]) -> Tensor:
        """Unit features of prompts, (B, F), each encoded once, and alone.

        Rounding depends on the batch, and a reward must not depend on what was asked before.
        """
        for prompt in prompts:
            if prompt not in self._texts or self._texts[prompt].dtype != self.dtype:
                with torch.no_grad():
                    features = self.towers.encode_text(prompt, self.device)
                self._texts[prompt] = F.normalize(features, dim=-1)[0]
        return torch.stack([self._texts[prompt] for prompt in prompts])

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return (self.image_features(images) * self.text_features(prompts)).sum(1)
