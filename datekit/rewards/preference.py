"""A small ImageReward: a CLIP with a head, trained on which of two pictures is preferred."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from .clip_towers import OpenCLIP, TowerReward

HIDDEN = 64
HEAD = "head.safetensors"


class PreferenceScore(TowerReward):
    """h(image, prompt), (B,), with P(a is preferred to b) = sigmoid(h(a) - h(b)).

    Bradley and Terry 1952. folder: an open_clip folder with head.safetensors beside it, as
    `load("shapes-preference")` has it; antialias: as for `CLIPScore`. Raises FileNotFoundError
    where there is no head.
    """

    SHIPPED: ClassVar = {"shapes-preference": "preference"}

    def __init__(
        self, folder: str | Path, *, device: str | None = None, antialias: bool = True
    ) -> None:
        from safetensors.torch import load_file

        path = Path(folder) / HEAD
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder} has no {HEAD}; for the shipped one, dk.rewards.load('shapes-preference')"
            )
        pair = OpenCLIP(f"local-dir:{folder}")
        weights = load_file(path)
        head = PreferenceHead(weights["first.weight"].shape[1] // 3, len(weights["first.bias"]))
        head.load_state_dict(weights)
        pair.model.add_module("preference_head", head)
        super().__init__(
            pair,
            name=f"PreferenceScore({str(folder)!r})",
            settings=dict(folder=str(folder), antialias=antialias),
            device=device,
            antialias=antialias,
        )

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The scores, (B,); carries gradient to the images."""
        z, y = self.image_features(images).to(self.device), self.text_features(prompts)
        return self.model.preference_head(z, y.to(z.dtype)).to(images.device)


class PreferenceHead(nn.Module):
    """scale cos(z, y) + mlp(z, y, z y) of unit features z of an image and y of a prompt."""

    def __init__(self, features: int, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3 * features, hidden), nn.Linear(hidden, 1, bias=False)
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """(B, F) and (B, F) to (B,)."""
        both = z * y
        size = z.shape[1] ** 0.5  # entries of unit features are small; this makes them near 1
        features = torch.cat([z * size, y * size, both * size**2], 1)
        free = self.second(nn.functional.silu(self.first(features)))
        return self.scale * both.sum(1) + free[:, 0]
