"""The two towers of a CLIP behind one door, whichever library they come from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import unknown
from .network import CLIP_MEAN, CLIP_STD, Loaded, NetworkReward


class OpenCLIP(Loaded):
    """An open_clip model: name and tag, "local-dir:folder" or "hf-hub:owner/name".

    The tag may also be a file of weights.
    """

    def __init__(self, model: str, tag: str | None = None) -> None:
        import open_clip

        # The tag knows how the weights were trained: create_model alone would only warn about
        # the other activation.
        known = (open_clip.get_pretrained_cfg(model, tag) if tag else None) or {}
        network = open_clip.create_model(
            model, pretrained=tag, device="cpu", force_quick_gelu=known.get("quick_gelu", False)
        )
        visual, side = network.visual, network.visual.image_size
        size = (side, side) if isinstance(side, int) else tuple(side)
        mean, std = visual.image_mean or CLIP_MEAN, visual.image_std or CLIP_STD
        super().__init__(network, size, mean, std)
        self.tokenizer = open_clip.get_tokenizer(model)

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Features of normalised pixels, (B, F)."""
        return self.network.encode_image(pixels)

    def encode_text(self, prompts: list[str], device: torch.device) -> Tensor:
        """Features of prompts, (B, F); the tokenizer cuts what is too long."""
        return self.network.encode_text(self.tokenizer(prompts).to(device))


class TransformersCLIP(Loaded):
    """A transformers `CLIPModel` with its tokenizer, from a hub id or folder.

    The processor is where tokenizer and normalisation are, if elsewhere.
    """

    def __init__(self, source: str, processor: str | None = None) -> None:
        from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

        network = CLIPModel.from_pretrained(source)
        super().__init__(network, (network.config.vision_config.image_size,) * 2)
        self.tokenizer = AutoTokenizer.from_pretrained(processor or source)
        try:
            images = CLIPImageProcessor.from_pretrained(processor or source)
            self.mean, self.std = images.image_mean, images.image_std
        except OSError:  # a folder with the model alone
            pass

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Features of normalised pixels, (B, F)."""
        return self.network.visual_projection(self.network.vision_model(pixels).pooler_output)

    def encode_text(self, prompts: list[str], device: torch.device) -> Tensor:
        """Features of prompts, (B, F); the tokenizer cuts what is too long."""
        tokens = self.tokenizer(
            prompts,
            padding="max_length",
            truncation=True,
            max_length=self.network.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(device)
        pooled = self.network.text_model(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
        ).pooler_output
        return self.network.text_projection(pooled)


Towers = OpenCLIP | TransformersCLIP


def towers(model: str | Path, tag: str | None = None) -> Towers:
    """The towers of `CLIPScore(model, tag)`.

    With a tag, or a colon in the name, they are open_clip's; a folder is known by what is in it;
    anything else is a hub id of transformers. Raises ValueError for an architecture without a tag,
    for a name that is none of these, and for a folder that holds neither.
    """
    import open_clip

    name = str(model)
    if tag is not None or ":" in name:
        return OpenCLIP(name, tag)
    if Path(name).is_dir():
        return _of_folder(Path(name))
    if name in open_clip.list_models():
        tags = ", ".join(map(repr, open_clip.list_pretrained_tags_by_model(name)))
        raise ValueError(f"{name} needs a tag that says which weights it has, one of {tags}")
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        more = " Or a folder, a hub id 'owner/name', or open_clip's 'hf-hub:owner/name'."
        raise unknown("CLIP model", name, open_clip.list_models(), more)
    return TransformersCLIP(name)


def _of_folder(folder: Path) -> Towers:
    if (folder / "open_clip_config.json").is_file():
        return OpenCLIP(f"local-dir:{folder}")  # open_clip's own word for a folder
    config = folder / "config.json"
    if config.is_file() and json.loads(config.read_text()).get("model_type") == "clip":
        return TransformersCLIP(str(folder))
    raise ValueError(
        f"{folder} holds no CLIP model: no open_clip_config.json and no config.json of type 'clip'"
    )


class TowerReward(NetworkReward):
    """A reward on CLIP features; `__post_init__` gives `hold` the towers."""

    kind = "reward"  # said here, as this class alone is no reward that could be asked for by name

    def hold(self, loaded: Towers) -> None:
        """Keep the towers, frozen and in float32."""
        super().hold(loaded)
        self.towers = loaded
        self._texts: dict[str, Tensor] = {}

    def image_features(self, images: Tensor) -> Tensor:
        """Unit features of images, (B, F); carries gradient."""
        return F.normalize(self.towers.encode_image(self.pixels(images)), dim=-1).to(images.device)

    def text_features(self, prompts: Sequence[str]) -> Tensor:
        """Unit features of prompts, (B, F).

        Each prompt is encoded once, and alone: rounding depends on the batch, and a prompt's reward
        must not depend on which prompts were asked about before.
        """
        for prompt in dict.fromkeys(prompts):
            if prompt not in self._texts or self._texts[prompt].dtype != self.dtype:
                with torch.no_grad():
                    features = self.towers.encode_text([prompt], self.device)
                self._texts[prompt] = F.normalize(features, dim=-1)[0]
        return torch.stack([self._texts[prompt] for prompt in prompts])

    def cosine(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Cosines of image and text features, (B,); carries gradient to the images."""
        return (self.image_features(images) * self.text_features(prompts).to(images.device)).sum(1)
