"""Published scores on the features of a CLIP: their cosines, and one by a head on the images'."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from ..files import read_torch
from ..registry import option
from .network import published_head
from .towers import OpenCLIP, TowerReward, TransformersCLIP, towers

AESTHETIC_HEAD = (
    "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/"
    "sac%2Blogos%2Bava1-l14-linearMSE.pth"
)
PICK_PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"  # what PickScore's model card names


@dataclass(repr=False, eq=False)
class CLIPScore(TowerReward):
    """cos(image features, text features), (B,) in [-1, 1], unscaled (Hessel et al. 2021).

    DATE's authors resized with antialias=False; the library's own preprocessing is "bicubic".
    """

    SHIPPED: ClassVar = {
        "shapes-clip": "clip",
        "shapes-clip-plain": "clip-plain",
        "shapes-clip-heldout": "clip-heldout",
    }

    model: str | Path = option(
        help="An open_clip model with its tag, or else a shipped name, a folder, the hub id of a "
        "transformers `CLIPModel`, or open_clip's own 'local-dir:folder' and 'hf-hub:owner/name'."
    )
    tag: str | None = option(None, help="Which of open_clip's weights, 'openai' for instance.")

    def __post_init__(self) -> None:
        names = [str(name) for name in (self.model, self.tag) if name is not None]
        self.name = f"CLIPScore({', '.join(map(repr, names))})"
        self.hold_towers(towers(self.locate(self.model), self.tag))


@dataclass(repr=False, eq=False)
class PickScore(TowerReward):
    """exp(logit_scale) cos(image features, text features), (B,), about 15 to 25.

    The CLIP is trained on which of two pictures people pick (Kirstain et al. 2023, Eq. 1). Images
    are resized as the published preprocessing does.
    """

    name = "PickScore"

    model: str | Path = option(
        "yuvalkirstain/PickScore_v1",
        help="Hub id of a transformers `CLIPModel`, or its folder, with or without a tokenizer.",
    )
    _: KW_ONLY
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        whole = (Path(self.model) / "preprocessor_config.json").is_file()
        beside = None if whole else PICK_PROCESSOR
        self.hold_towers(TransformersCLIP(str(self.model), beside))

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.network.logit_scale.exp() * super().forward(images, prompts)


@dataclass(repr=False, eq=False)
class HPSv2(TowerReward):
    """cos(image features, text features), (B,), about 0.2 to 0.35 (Wu et al. 2023).

    The CLIP is trained on human preferences between pictures. Images are resized as the published
    preprocessing does with square ones, and padded as it pads others with fit="own".
    """

    name = "HPSv2"

    checkpoint: str | Path | None = option(
        None, help="A local file in place of the published version 2.1."
    )
    _: KW_ONLY
    model: str = option("ViT-H-14", help="The open_clip architecture of that file.")
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        from huggingface_hub import hf_hub_download

        file = self.checkpoint or hf_hub_download("xswu/HPSv2", "HPS_v2.1_compressed.pt")
        self.hold_towers(OpenCLIP(self.model, str(file)))
        self.resize_mode = "longest"


@dataclass(repr=False, eq=False)
class AestheticScore(TowerReward):
    """head(unit image features), (B,), a rating from about 1 to 10; float32, weights frozen.

    The head is 768-1024-128-64-16-1 without activations, hence linear as a function, trained on
    SAC, logos and AVA. Images are resized as CLIP's own preprocessing does.
    """

    name = "AestheticScore"

    model: str | Path | None = option(
        None, help="A folder or hub id of another CLIP than OpenAI's ViT-L-14."
    )
    _: KW_ONLY
    head: str | Path | None = option(
        None, help="A local file in the layout of the published head, which is fetched without one."
    )
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        pair = towers(self.model) if self.model else towers("ViT-L-14", "openai")
        head, fetch = self.head, torch.hub.load_state_dict_from_url
        published = {"map_location": "cpu", "weights_only": True}
        weights = read_torch(head, "head") if head else fetch(AESTHETIC_HEAD, **published)
        pair.network.add_module("aesthetic_head", published_head(weights, "layers"))
        self.hold_towers(pair)

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.network.aesthetic_head(self.image_features(images))[:, 0]
