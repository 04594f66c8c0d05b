"""HPSv2: a ViT-H CLIP trained on human preferences between pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from torch import Tensor

from ..errors import unknown
from ..registry import option
from .clip_towers import OpenCLIP, TowerReward

HUB = "xswu/HPSv2"
FILES = {"2.0": "HPS_v2_compressed.pt", "2.1": "HPS_v2.1_compressed.pt"}


@dataclass(repr=False, eq=False)
class HPSv2(TowerReward):
    """Cosines of the features of the HPSv2 CLIP, (B,), about 0.2 to 0.35 (Wu et al. 2023).

    Images are resized as the published preprocessing does with square ones. Raises ValueError for
    another version, and FileNotFoundError for a checkpoint that is no file.
    """

    version: str = option("2.1", help="Which of the published weights.", choices=tuple(FILES))
    _: KW_ONLY
    checkpoint: str | Path | None = option(None, help="A local file in place of the hub's.")
    model: str = option("ViT-H-14", help="The open_clip architecture of that file.")
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        if self.version not in FILES:
            raise unknown("HPSv2 version", self.version, FILES)
        if self.checkpoint is not None and not Path(self.checkpoint).is_file():
            raise FileNotFoundError(
                f"{self.checkpoint} is no file; leave `checkpoint` out to fetch "
                f"{FILES[self.version]} from {HUB}"
            )
        self.name = f"HPSv{self.version}"
        self.hold(OpenCLIP(self.model, str(self.checkpoint or _fetch(self.version))))

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The cosines, (B,); carries gradient to the images."""
        return self.cosine(images, prompts)


def _fetch(version: str) -> str:
    from huggingface_hub import hf_hub_download

    return hf_hub_download(HUB, FILES[version])
