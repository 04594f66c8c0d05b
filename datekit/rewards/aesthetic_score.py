"""Aesthetic score: a linear head on the image features of a CLIP; the prompt plays no part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import unknown
from .clip_towers import TowerReward, towers

HEADS = {
    "improved": "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/"
    "sac%2Blogos%2Bava1-l14-linearMSE.pth",
    "laion": "https://github.com/LAION-AI/aesthetic-predictor/raw/main/sa_0_4_vit_l_14_linear.pth",
}
LAYERS = (
    "layers.0",
    "layers.2",
    "layers.4",
    "layers.6",
    "layers.7",
)  # of the first, between dropout


class AestheticScore(TowerReward):
    """head(unit image features), (B,), a rating from about 1 to 10; float32, weights frozen.

    head: "improved" (768-1024-128-64-16-1 without activations, hence linear as a function, trained
    on SAC, logos and AVA), "laion" (one linear map), or a local file in either layout (torch or
    safetensors); model, tag: the CLIP whose features it takes, as for `CLIPScore`; antialias,
    interpolation: how images are resized, by default as CLIP's own preprocessing does. Raises
    ValueError for a file that holds no such head, or one of another width.
    """

    def __init__(
        self,
        head: str | Path = "improved",
        model: str | Path = "ViT-L-14",
        tag: str | None = None,
        *,
        device: str | None = None,
        antialias: bool = True,
        interpolation: str = "bicubic",
    ) -> None:
        head, model = str(head), str(model)
        tag = "openai" if tag is None and model == "ViT-L-14" else tag
        network = _head(head)
        resize = dict(antialias=antialias, interpolation=interpolation)
        super().__init__(
            towers(model, tag),
            name="AestheticScore",
            settings=dict(head=head, model=model, tag=tag, **resize),
            device=device,
            **resize,
        )
        with torch.no_grad():
            width = self.image_features(torch.zeros(1, 3, *self.size)).shape[1]
        if network[0].in_features != width:
            taken = network[0].in_features
            raise ValueError(f"the head {head!r} takes {taken} features, but {model} gives {width}")
        network = network.to(self.device).float().eval().requires_grad_(False)
        self.model.add_module("aesthetic_head", network)

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The ratings, (B,), whatever the prompts; carries gradient to the images."""
        features = self.image_features(images).to(self.device)
        return self.model.aesthetic_head(features)[:, 0].to(images.device)


def _head(source: str) -> nn.Sequential:
    """The linear maps of a head, in order."""
    weights = _weights(source)
    layers = [""] if set(weights) == {"weight", "bias"} else [f"{layer}." for layer in LAYERS]
    wanted = {f"{layer}weight" for layer in layers} | {f"{layer}bias" for layer in layers}
    if set(weights) != wanted:
        raise ValueError(
            f"{source} holds no aesthetic head: expected one linear map (weight, bias) or "
            f"{', '.join(LAYERS)}, found {', '.join(sorted(weights))}"
        )
    maps = nn.Sequential()
    for layer in layers:
        weight, bias = weights[f"{layer}weight"], weights[f"{layer}bias"]
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": weight, "bias": bias})
        maps.append(linear)
    return maps


def _weights(source: str) -> dict[str, Tensor]:
    if source in HEADS:
        return torch.hub.load_state_dict_from_url(
            HEADS[source], map_location="cpu", weights_only=True
        )
    if not Path(source).is_file():
        raise unknown("aesthetic head", source, HEADS, " Or give a local file.")
    if source.endswith(".safetensors"):
        from safetensors.torch import load_file

        return load_file(source)
    return torch.load(source, map_location="cpu", weights_only=True)
