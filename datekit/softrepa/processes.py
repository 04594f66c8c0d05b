"""This process among those that `accelerate launch` started."""

from __future__ import annotations

import contextlib
import os
from contextlib import AbstractContextManager

import torch
from torch import Tensor


class Processes:
    """Who takes part in a training: `rank` is the number of this process, `world` how many are."""

    def __init__(self, device: torch.device) -> None:
        self.rank, self.world, self._state = 0, 1, None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import PartialState

            self._state = PartialState(cpu=device.type == "cpu")
            self.rank, self.world = self._state.process_index, self._state.num_processes

    def main_first(self) -> AbstractContextManager:
        """Inside, the first process works before the others, who then find its files."""
        return self._state.main_process_first() if self._state else contextlib.nullcontext()

    def mean(self, value: Tensor) -> Tensor:
        """A tensor averaged over the processes."""
        if self._state is None:
            return value
        from accelerate.utils import reduce

        return reduce(value, "mean")


def shutdown() -> None:
    """End the work of several processes together; each calls it last.

    One that left early would abort those that are still connected to it.
    """
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        from accelerate import PartialState

        PartialState().wait_for_everyone()
        PartialState().destroy_process_group()
