"""How much of a batch is in memory at once, and what to say when memory is used up."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .errors import whole

_ADVICE = (
    "the memory of the device is used up. These settings of dk.Sampler need less, in the order of "
    "their price: a lower decode_batch costs almost nothing; keep_graph=False costs one more pass "
    "of the network; a lower micro_batch uses the device less well; checkpointing=True costs one "
    "more pass of network and decoder. Smaller pictures, fewer prompts and half precision help, too"
)


@dataclass(frozen=True)
class MemorySettings:
    """How much of a batch is in memory at once. Only the user changes it; results stay the same.

    micro_batch: how many samples are differentiated at a time, all for None; decode_batch: how many
    of these are decoded and scored at a time, all for None; checkpointing: whether activations are
    recomputed in the backward pass instead of kept; keep_graph: whether the network's graph waits
    for the reward's gradient, which saves a forward pass and holds both graphs in memory together.
    """

    micro_batch: int | None = None
    decode_batch: int | None = None
    checkpointing: bool = False
    keep_graph: bool = True

    def __post_init__(self) -> None:
        for name in ("micro_batch", "decode_batch"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, whole(name, getattr(self, name), 1))
        for name in ("checkpointing", "keep_graph"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or PyTorch on the CPU, could not get its memory."""
    on_cpu = ("DefaultCPUAllocator", "could not create a primitive")  # PyTorch's, and oneDNN's
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in on_cpu)


@contextlib.contextmanager
def explain() -> Iterator[None]:
    """Inside, memory that is used up raises one torch.OutOfMemoryError that says what to change."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not out_of_memory(error) or _ADVICE in str(error):
            raise
        traceback.clear_frames(error.__traceback__)  # else the graph would live with the error
        raise torch.OutOfMemoryError(f"{_ADVICE}.\n{error}") from error
