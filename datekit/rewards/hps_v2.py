"""HPSv2: a ViT-H CLIP trained on human preferences between pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ..errors import unknown
from .clip_towers import OpenCLIP, TowerReward

HUB = "xswu/HPSv2"
FILES = {"2.0": "HPS_v2_compressed.pt", "2.1": "HPS_v2.1_compressed.pt"}


class HPSv2(TowerReward):
    """Cosines of the features of the HPSv2 CLIP, (B,), about 0.2 to 0.35 (Wu et al. 2023).

    version: "2.0" or "2.1"; checkpoint: a local file in place of the hub's; model: the open_clip
    architecture of that file; antialias, interpolation: how images are resized, by default as the
    published preprocessing does with square images. Raises ValueError for another version, and
    FileNotFoundError for a checkpoint that is no file.
    """

    def __init__(
        self,
        version: str = "2.1",
        *,
        checkpoint: str | Path | None = None,
        model: str = "ViT-H-14",
        device: str | None = None,
        antialias: bool = True,
        interpolation: str = "bicubic",
    ) -> None:
        if version not in FILES:
            raise unknown("HPSv2 version", version, FILES)
        if checkpoint is not None and not Path(checkpoint).is_file():
            raise FileNotFoundError(
                f"{checkpoint} is no file; leave `checkpoint` out to fetch {FILES[version]} "
                f"from {HUB}"
            )
        checkpoint = None if checkpoint is None else str(checkpoint)
        resize = dict(antialias=antialias, interpolation=interpolation)
        super().__init__(
            OpenCLIP(model, checkpoint or _fetch(version)),
            name=f"HPSv{version}",
            settings=dict(version=version, checkpoint=checkpoint, model=model, **resize),
            device=device,
            **resize,
        )

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The cosines, (B,); carries gradient to the images."""
        return self.cosine(images, prompts)


def _fetch(version: str) -> str:
    from huggingface_hub import hf_hub_download

    return hf_hub_download(HUB, FILES[version])
