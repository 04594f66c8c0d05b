"""SoftREPA: learnt text tokens stand in the network while a step is taken."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..registry import option
from ..schedules import Schedule, as_schedule, every
from .base import Method
from .soft_tokens import PLACES, SoftTokens, load


@dataclass(frozen=True)
class SoftREPA(Method):
    """Soft text tokens in every layer they were trained for (arXiv 2503.08250).

    In a U-Net, cross-attention of the chosen blocks reads [c_start, s, c_rest] in place of c, with
    s the tokens (m, D). In a joint transformer (SD3, FLUX), block k gets [s_k, text] in place of
    the text, and the m states that it makes of them are dropped after it. With a time index, the
    vector of the bin of t (t // 10) is added to s_k. The embedding that is fed stays c_org, so that
    DATE beside it moves the text and differentiates the network with its tokens. No tokens (m = 0)
    are `Fixed`, bit for bit. Raises ValueError for tokens of another family, width or depth.
    """

    tokens: SoftTokens = option(
        help="Soft tokens, a file of them, or the name of a shipped model whose tokens to take."
    )
    when: Schedule = option(factory=every, label="when", help="Which steps have the tokens.")
    negative: bool = option(
        True,
        help="Whether the unconditional branch has them too; without, the branches run one after "
        "the other.",
    )

    def __post_init__(self) -> None:
        if isinstance(self.tokens, (str, Path)):
            object.__setattr__(self, "tokens", load(self.tokens))
        if not isinstance(self.tokens, SoftTokens):
            raise TypeError(
                "tokens must be what dk.softrepa.train or dk.softrepa.load returns, or a file of "
                f"them, got {self.tokens!r}"
            )
        if not isinstance(self.negative, bool):
            raise ValueError(f"negative must be True or False, got {self.negative!r}")
        object.__setattr__(self, "when", as_schedule(self.when))

    def check(self, sampler) -> None:
        """Raise ValueError where the schedule or the model does not fit."""
        super().check(sampler)
        check_fit(sampler.backbone, self.tokens)

    def patch(self, denoiser) -> AbstractContextManager:
        """Bring the tokens in by hooks, which are gone afterwards."""
        state = denoiser.state
        if not self.tokens.num_tokens or not self.when(state.i, denoiser.num_steps):
            return contextlib.nullcontext()
        if self.negative:
            return placed(denoiser.backbone, self.tokens, state.t)
        denoiser.one_batch = False  # rows of one batch cannot have texts of different lengths
        return placed(denoiser.backbone, self.tokens, state.t, lambda: denoiser.branch)


def takes(backbone) -> tuple[bool, tuple[int, ...], tuple]:
    """What soft tokens a model takes: whether of the joint kind, of which widths, at which layers.

    Of two widths the second passes the network's own embedder first. Raises ValueError for a model
    that takes none.
    """
    from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel

    network = getattr(backbone, "network", None)
    if isinstance(network, UNet2DConditionModel):
        blocks = _attending(network)
        places = tuple(place for place in PLACES if blocks[place])
        return False, (network.config.cross_attention_dim,), places
    if isinstance(network, (SD3Transformer2DModel, FluxTransformer2DModel)):
        widths = dict.fromkeys((network.inner_dim, network.config.joint_attention_dim))
        return True, tuple(widths), tuple(range(len(network.transformer_blocks)))
    kind = type(backbone if network is None else network).__name__
    raise ValueError(
        "SoftREPA is defined for U-Nets with cross-attention and for joint transformers (SD3, "
        f"FLUX), and {backbone.name} is neither ({kind})"
    )


def check_fit(backbone, soft: SoftTokens) -> None:
    """Raise ValueError for tokens that a model cannot take; it names their file and what fits."""
    joint, widths, layers = takes(backbone)
    name = soft.source or "these soft tokens"
    which = f"{name} of shape {tuple(soft.tokens.shape)} for {soft.layers}"
    if joint != soft.joint:
        kind, first = ("joint transformer", "layers") if joint else ("U-Net", "1")
        raise ValueError(
            f"{which} were made for another family: {backbone.name} is a {kind}, which takes "
            f"({first}, number, {widths[0]})"
        )
    if missing := [layer for layer in soft.layers if layer not in layers]:
        raise ValueError(f"{which} need the layers {missing}, and {backbone.name} has {layers}")
    width = soft.tokens.shape[2]
    time_width = widths[0] if soft.time is None else soft.time.shape[2]
    if width not in widths or time_width != widths[0]:
        raise ValueError(
            f"{which}, of width {width} and a time index of width {time_width}, do not fit "
            f"{backbone.name}: it takes tokens of width {' or '.join(map(str, widths))} and a time "
            f"index of width {widths[0]}"
        )


@contextlib.contextmanager
def placed(
    backbone, soft: SoftTokens, t: float, branch: Callable[[], str | None] | None = None
) -> Iterator[None]:
    """Inside, the network runs with the tokens of timestep t, and carries gradient to them.

    branch: where the branch "uncond" goes without tokens, a function that tells during a pass which
    branch it computes; None where every pass has them.
    """
    check_fit(backbone, soft)
    insert = _prepend if soft.joint else _insert_after_start
    with contextlib.ExitStack() as stack:
        for vectors, block in _vectors(backbone.network, soft, t):
            for handle in insert(block, vectors, _Turn(branch)):
                stack.callback(handle.remove)
        yield


def _vectors(network, soft: SoftTokens, t: float) -> list[tuple[Tensor, torch.nn.Module]]:
    """The tokens at timestep t, (m, D), and the block that they enter, one entry a block."""
    tokens = soft.tokens.to(network.device)
    if soft.joint and tokens.shape[2] != network.inner_dim:
        tokens = network.context_embedder(tokens.to(network.dtype)).to(tokens.dtype)
    if soft.time is not None:
        tokens = tokens + soft.time_at(t).to(tokens)
    if soft.joint:
        return [(tokens[n], network.transformer_blocks[k]) for n, k in enumerate(soft.layers)]
    attending, entered = _attending(network), []
    for place in soft.layers:
        entered += attending[place]
    return [(tokens[0], block) for block in entered]


def _attending(network) -> dict[str, list[torch.nn.Module]]:
    """The blocks of a U-Net that have cross-attention, by their place."""
    middle = [] if network.mid_block is None else [network.mid_block]
    attending = {}
    for place, blocks in zip(PLACES, (network.down_blocks, middle, network.up_blocks), strict=True):
        attending[place] = [b for b in blocks if getattr(b, "has_cross_attention", False)]
    return attending


class _Turn:
    """Whether a pass of one block has tokens.

    Gradient checkpointing runs a block again in the backward pass, when no branch is computed any
    more. What the block is given then is the very tensor of the first time.
    """

    def __init__(self, branch: Callable[[], str | None] | None) -> None:
        self.branch, self.without = branch, []

    def has_tokens(self, text: Tensor) -> bool:
        """Whether the pass that reads this text has tokens."""
        if self.branch is None:
            return True
        branch = self.branch()
        if branch == "uncond" and torch.is_grad_enabled():
            self.without.append(text)
        again = branch is None and any(text is other for other in self.without)
        return branch != "uncond" and not again


def _insert_after_start(block, vectors: Tensor, turn: _Turn) -> list:
    """Hooks with which a block of a U-Net reads [start, tokens, rest]."""

    def before(module, args, kwargs):
        text = kwargs["encoder_hidden_states"]
        if not turn.has_tokens(text):
            return None
        longer = torch.cat([text[:, :1], _rows(vectors, text), text[:, 1:]], 1)
        return args, kwargs | {"encoder_hidden_states": longer}

    return [block.register_forward_pre_hook(before, with_kwargs=True)]


def _prepend(block, vectors: Tensor, turn: _Turn) -> list:
    """Hooks with which a joint block reads [tokens, text], and drops their states again."""
    names, count, entered = list(inspect.signature(block.forward).parameters), len(vectors), []

    def before(module, args, kwargs):
        # under gradient checkpointing the arguments come by position
        given = dict(zip(names, args, strict=False)) | kwargs
        text, rotary = given["encoder_hidden_states"], given.get("image_rotary_emb")
        entered.append(turn.has_tokens(text))
        if not entered[-1]:
            return None
        given["encoder_hidden_states"] = torch.cat([_rows(vectors, text), text], 1)
        if rotary is not None:  # FLUX: its text stands at position 0, where nothing is rotated
            cos, sin = rotary
            cos = torch.cat([torch.ones_like(cos[:count]), cos])
            given["image_rotary_emb"] = cos, torch.cat([torch.zeros_like(sin[:count]), sin])
        return (), given

    def after(module, args, output):
        text, hidden = output
        if entered.pop() and text is not None:
            text = text[:, count:]
        return text, hidden

    first = block.register_forward_pre_hook(before, with_kwargs=True)
    return [first, block.register_forward_hook(after)]


def _rows(vectors: Tensor, text: Tensor) -> Tensor:
    """Tokens (m, D) for each row of a text (B, L, D), in its precision."""
    return vectors.to(text.dtype).expand(len(text), *vectors.shape)
