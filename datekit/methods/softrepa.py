"""SoftREPA: learnt text tokens stand in the network while a step is taken."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..registry import option
from ..schedules import Schedule, every
from .base import Method
from .soft_tokens import SoftTokens, load


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
    when: Schedule = option(factory=every, help="Which steps have the tokens.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.tokens, (str, Path)):
            object.__setattr__(self, "tokens", load(self.tokens))
        if not isinstance(self.tokens, SoftTokens):
            raise TypeError(f"tokens must be what dk.softrepa.load takes, got {self.tokens!r}")

    def check(self, sampler) -> None:
        super().check(sampler)
        check_fit(sampler.backbone, self.tokens)

    def patch(self, denoiser) -> AbstractContextManager:
        if self.tokens.tokens.shape[1] and self.when(denoiser.state.i, denoiser.num_steps):
            return placed(denoiser.backbone, self.tokens, denoiser.state.t)
        return contextlib.nullcontext()


def takes(backbone) -> tuple[bool, int, tuple]:
    """What soft tokens a model takes: whether of the joint kind, how wide, and at which layers.

    Raises ValueError for a model that takes none.
    """
    from diffusers import SD3Transformer2DModel, UNet2DConditionModel

    network = getattr(backbone, "network", None)
    if isinstance(network, UNet2DConditionModel):
        places = tuple(place for place, blocks in _attending(network).items() if blocks)
        return False, network.config.cross_attention_dim, places
    if isinstance(network, SD3Transformer2DModel):
        return True, network.inner_dim, tuple(range(len(network.transformer_blocks)))
    raise ValueError(f"SoftREPA acts in U-Nets and in SD3; {backbone.name} is neither")


def check_fit(backbone, soft: SoftTokens) -> None:
    """Raise ValueError for tokens that a model cannot take; it says what fits."""
    _, width, layers = takes(backbone)
    widths = {x.shape[2] for x in (soft.tokens, soft.time) if x is not None}
    if widths != {width} or not set(soft.layers) <= set(layers):
        raise ValueError(
            f"{soft!r} of width {' and '.join(map(str, widths))} does not fit {backbone.name}, "
            f"which takes width {width} at some of {layers}"
        )


@contextlib.contextmanager
def placed(backbone, soft: SoftTokens, t: float) -> Iterator[None]:
    """Inside, the network runs with the tokens of timestep t, and carries gradient to them."""
    network = backbone.network
    tokens = soft.at(t).to(network.device)
    with contextlib.ExitStack() as stack:
        for n, layer in enumerate(soft.layers):
            if soft.joint:
                handles = _prepend(network.transformer_blocks[layer], tokens[n])
            else:
                blocks = _attending(network)[layer]
                handles = [_insert_after_start(block, tokens[0]) for block in blocks]
            for handle in handles:
                stack.callback(handle.remove)
        yield


def _attending(network) -> dict[str, list[torch.nn.Module]]:
    """The blocks of a U-Net that have cross-attention, by their place."""
    groups = {"down": network.down_blocks, "mid": [network.mid_block], "up": network.up_blocks}
    attending = {}
    for place, blocks in groups.items():
        attending[place] = [b for b in blocks if getattr(b, "has_cross_attention", False)]
    return attending


def _insert_after_start(block, vectors: Tensor):
    """A hook with which a block of a U-Net reads [start, tokens, rest]."""

    def before(module, args, kwargs):
        text = kwargs["encoder_hidden_states"]
        longer = torch.cat([text[:, :1], _rows(vectors, text), text[:, 1:]], 1)
        return args, kwargs | {"encoder_hidden_states": longer}

    return block.register_forward_pre_hook(before, with_kwargs=True)


def _prepend(block, vectors: Tensor) -> list:
    """Hooks with which a joint block reads [tokens, text], and drops their states again."""
    names = list(inspect.signature(block.forward).parameters)

    def before(module, args, kwargs):
        # under gradient checkpointing the arguments come by position
        given = dict(zip(names, args, strict=False)) | kwargs
        text = given["encoder_hidden_states"]
        given["encoder_hidden_states"] = torch.cat([_rows(vectors, text), text], 1)
        return (), given

    def after(module, args, output):
        text, hidden = output
        return None if text is None else text[:, len(vectors) :], hidden

    return [
        block.register_forward_pre_hook(before, with_kwargs=True),
        block.register_forward_hook(after),
    ]


def _rows(vectors: Tensor, text: Tensor) -> Tensor:
    """Tokens (m, D) for each row of a text (B, L, D), in its precision."""
    return vectors.to(text.dtype).expand(len(text), *vectors.shape)
