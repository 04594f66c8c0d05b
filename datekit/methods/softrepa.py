"""SoftREPA: learnt text tokens stand in the network while a step is taken."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..registry import option
from ..schedules import Schedule, every
from .base import Method
from .soft_tokens import SoftTokens, load

if TYPE_CHECKING:
    from ..denoiser import Denoiser
    from ..sampler import Sampler


@dataclass(frozen=True)
class SoftREPA(Method):
    """Soft text tokens in every layer they were trained for (arXiv 2503.08250).

    In a U-Net, cross-attention of the chosen blocks reads [c_start, s, c_rest] in place of c, with
    s the tokens (m, D). In SD3's transformer, block k gets [s_k, text] in place of the text, and
    the m states that it makes of them are dropped after it. Both branches of guidance have the
    tokens. The embedding that is fed stays c_org, so that DATE beside it moves the text and
    differentiates the network with its tokens. No tokens (m = 0) are `Fixed`, bit for bit.
    """

    tokens: SoftTokens = option(help="Soft tokens, a file of them, or a shipped model's name.")
    when: Schedule = option(every(), help="Which steps have the tokens.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.tokens, (str, Path)):
            object.__setattr__(self, "tokens", load(self.tokens))
        if not isinstance(self.tokens, SoftTokens):
            raise TypeError(f"tokens must be what dk.softrepa.load takes, got {self.tokens!r}")

    def check(self, sampler: Sampler) -> None:
        super().check(sampler)
        _, width, blocks = takes(sampler.backbone)
        widths = [x.shape[2] for x in self.tokens.numbers.values()]
        if set(widths) != {width} or not set(self.tokens.layers) <= set(blocks):
            raise ValueError(
                f"{self.tokens!r} of width {widths} does not fit {sampler.backbone.name}, "
                f"which takes width {width} at some of {tuple(blocks)}"
            )

    def patch(self, denoiser: Denoiser) -> AbstractContextManager:
        if self.when(denoiser.state.i, denoiser.num_steps):
            return place(denoiser.backbone, self.tokens, denoiser.state.t)
        return contextlib.nullcontext()


def takes(backbone) -> tuple[bool, int, dict[str | int, list[torch.nn.Module]]]:
    """What soft tokens a model takes: whether of the joint kind, how wide, in which blocks.

    These stand by the names that `SoftTokens.layers` has for their places. Raises ValueError for a
    model that takes none.
    """
    from diffusers import SD3Transformer2DModel, UNet2DConditionModel

    network = getattr(backbone, "network", None)
    if isinstance(network, SD3Transformer2DModel):
        return True, network.inner_dim, {n: [b] for n, b in enumerate(network.transformer_blocks)}
    if not isinstance(network, UNet2DConditionModel):
        raise ValueError(f"SoftREPA acts in U-Nets and in SD3; {backbone.name} is neither")
    groups = {"down": network.down_blocks, "mid": [network.mid_block], "up": network.up_blocks}
    attending = {}
    for place, blocks in groups.items():
        if chosen := [block for block in blocks if getattr(block, "has_cross_attention", False)]:
            attending[place] = chosen
    return False, network.config.cross_attention_dim, attending


@contextlib.contextmanager
def place(backbone, soft: SoftTokens, t: float) -> Iterator[None]:
    """Inside, the network runs with the tokens of timestep t, and carries gradient to them."""
    joint, _, blocks = takes(backbone)
    tokens = soft.at(t).to(backbone.network.device)
    with contextlib.ExitStack() as stack:
        for layer, vectors in zip(soft.layers, tokens.expand(len(soft.layers), -1, -1)):
            for block in blocks[layer]:
                for handle in _insert(block, vectors, joint):
                    stack.callback(handle.remove)
        yield


def _insert(block, vectors: Tensor, joint: bool) -> list:
    """Hooks with which a block of a U-Net reads [start, tokens, rest], a joint one [tokens, text].

    A joint block makes states of them too, which are dropped again.
    """
    names, first = list(inspect.signature(block.forward).parameters), 0 if joint else 1

    def before(module, args, kwargs):
        # under gradient checkpointing the arguments come by position
        given = dict(zip(names, args, strict=False)) | kwargs
        text = given["encoder_hidden_states"]
        rows = vectors.to(text.dtype).expand(len(text), *vectors.shape)
        given["encoder_hidden_states"] = torch.cat([text[:, :first], rows, text[:, first:]], 1)
        return (), given

    def after(module, args, output):
        text, hidden = output
        return None if text is None else text[:, len(vectors) :], hidden

    handles = [block.register_forward_pre_hook(before, with_kwargs=True)]
    return [*handles, block.register_forward_hook(after)] if joint else handles
