"""HPSv2: a ViT-H CLIP trained on human preferences between pictures."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from ..registry import option
from .clip_score import OpenCLIP, TowerReward


@dataclass(repr=False, eq=False)
class HPSv2(TowerReward):
    """Cosines of the features of the HPSv2 CLIP, (B,), about 0.2 to 0.35 (Wu et al. 2023).

    Images are resized as the published preprocessing does with square ones.
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
