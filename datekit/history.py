"""What happened, step by step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .types import StepInfo


class History(Sequence):
    """The `StepInfo`s of a run, in order."""

    def __init__(self, infos: list[StepInfo]) -> None:
        self._infos = infos

    def __len__(self) -> int:
        return len(self._infos)

    def __getitem__(self, index):
        return History(self._infos[index]) if isinstance(index, slice) else self._infos[index]

    @property
    def updated(self) -> list[int]:
        """The steps in which the embedding was moved."""
        return [info.i for info in self if info.updated]

    def stack(self, name: str) -> Tensor:
        """One field of every step that has it, (T', B, ...). Raises ValueError where no step does."""
        found = [getattr(info, name) for info in self if getattr(info, name) is not None]
        if not found:
            raise ValueError(
                f"no step so far recorded {name!r}: it exists where a method with a reward updated (dk.DATE), "
                "and run.peek(reward) gives it for the step where the run is paused"
            )
        return torch.stack(found)

    def cosine(self, name: str = "direction") -> Tensor:
        """Cosines of a field between the steps that have it, (T', T'), averaged over the samples; a row of zeros has none."""
        rows = self.stack(name).flatten(2).double()
        rows = rows / rows.norm(dim=2, keepdim=True)
        return torch.einsum("sbn,tbn->bst", rows, rows).nanmean(0)

    def __repr__(self) -> str:
        return f"<History of {len(self)} steps, updated in {self.updated}>"
