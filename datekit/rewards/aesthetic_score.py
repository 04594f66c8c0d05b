"""Aesthetic score: a linear head on the image features of a CLIP; the prompt plays no part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import unknown
from ..registry import option
from .clip_towers import TowerReward, towers

HEADS = {
    "improved": "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/"
    "sac%2Blogos%2Bava1-l14-linearMSE.pth",
    "laion": "https://github.com/LAION-AI/aesthetic-predictor/raw/main/sa_0_4_vit_l_14_linear.pth",
}
LAYERS = [f"layers.{n}." for n in (0, 2, 4, 6, 7)]  # of the first, where dropout has numbers too


@dataclass(repr=False, eq=False)
class AestheticScore(TowerReward):
    """head(unit image features), (B,), a rating from about 1 to 10; float32, weights frozen.

    The head "improved" is 768-1024-128-64-16-1 without activations, hence linear as a function,
    trained on SAC, logos and AVA; "laion" is one linear map. Images are resized as CLIP's own
    preprocessing does. Raises ValueError for a file that holds no such head, or one of another
    width.
    """

    name = "AestheticScore"

    head: str | Path = option(
        "improved", help="'improved', 'laion', or a local file in the layout of either."
    )
    model: str | Path = option("ViT-L-14", help="The CLIP whose features it takes.")
    tag: str | None = option(None, help="Its tag, 'openai' for the default model.")
    _: KW_ONLY
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        if self.tag is None and self.model == "ViT-L-14":
            self.tag = "openai"
        head, pair = _head(str(self.head)), towers(self.model, self.tag)
        with torch.no_grad():
            width = pair.encode_image(torch.zeros(1, 3, *pair.size)).shape[1]
        if head[0].in_features != width:
            raise ValueError(
                f"the head {str(self.head)!r} takes {head[0].in_features} features, "
                f"but {self.model} gives {width}"
            )
        pair.network.add_module("aesthetic_head", head)
        self.hold(pair)

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The ratings, (B,), whatever the prompts; carries gradient to the images."""
        features = self.image_features(images).to(self.device)
        return self.network.aesthetic_head(features)[:, 0].to(images.device)


def _head(source: str) -> nn.Sequential:
    """The linear maps of a head, in order."""
    weights = _weights(source)
    layers = LAYERS if f"{LAYERS[0]}weight" in weights else [""]
    maps = nn.Sequential()
    try:
        for layer in layers:
            weight, bias = weights.pop(f"{layer}weight"), weights.pop(f"{layer}bias")
            linear = nn.Linear(weight.shape[1], weight.shape[0])
            linear.load_state_dict({"weight": weight, "bias": bias})
            maps.append(linear)
    except KeyError as error:
        raise ValueError(f"{source} holds no aesthetic head: it lacks {error}") from error
    if weights:
        raise ValueError(f"{source} holds no aesthetic head, but {', '.join(weights)} too")
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
