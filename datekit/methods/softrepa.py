"""SoftREPA: learnt text tokens stand in the network while a step is taken; the network itself stays as it is."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..schedules import Schedule, as_schedule, every
from .soft_tokens import PLACES, SoftTokens, load
from .base import Method


@dataclass(frozen=True)
class SoftREPA(Method):
    """Soft text tokens in every layer they were trained for (arXiv 2503.08250), on both branches of guidance.

    In a U-Net, cross-attention of the chosen blocks reads [c_start, s, c_rest] in place of c, s the tokens (m, D). In a joint transformer
    (SD3, FLUX) block k gets [s_k, text] in place of the text, and the m states that it makes of them are dropped after it. With a time
    index, s_k gets the vector of the bin of t (t // 10) added. The embedding that is fed stays c_org, so that DATE beside it moves
    the text and differentiates the network with its tokens. tokens: `SoftTokens`, or the file or the shipped model to load them for;
    when: which steps; negative: False leaves the unconditional branch without them (the branches then run one after the other).
    No tokens (m = 0) are `Fixed`, bit for bit. Raises ValueError for tokens of another family, width or depth.
    """

    tokens: SoftTokens
    when: Schedule = field(default_factory=every)
    negative: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.tokens, (str, Path)):
            object.__setattr__(self, "tokens", load(self.tokens))
        if not isinstance(self.tokens, SoftTokens):
            raise TypeError(
                f"tokens must be what dk.softrepa.train or dk.softrepa.load returns, or a file of them, got {self.tokens!r}"
            )
        if not isinstance(self.negative, bool):
            raise ValueError(f"negative must be True or False, got {self.negative!r}")
        object.__setattr__(self, "when", as_schedule(self.when))

    def check(self, sampler) -> None:
        """Raise ValueError where the schedule or the model does not fit."""
        self.when.indices(sampler.num_steps)
        check_fit(sampler.backbone, self.tokens)

    def patch(self, denoiser) -> AbstractContextManager:
        """Hooks that bring the tokens in, gone afterwards, whatever happens in between."""
        if not self.tokens.num_tokens or not self.when(denoiser.state.i, denoiser.num_steps):
            return contextlib.nullcontext()
        branch = None if self.negative else lambda: denoiser.branch
        return placed(denoiser.backbone, self.tokens, denoiser.state.t, branch)


def takes(backbone) -> tuple[bool, tuple[int, ...], tuple]:
    """What soft tokens a model takes: whether of the joint kind, of which widths, at which layers. Raises ValueError if none."""
    from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel

    network = getattr(backbone, "network", None)
    if isinstance(network, UNet2DConditionModel):
        found = _attending(network)
        return (
            False,
            (network.config.cross_attention_dim,),
            tuple(place for place in PLACES if found[place]),
        )
    if isinstance(network, (SD3Transformer2DModel, FluxTransformer2DModel)):
        widths = dict.fromkeys(
            (network.inner_dim, network.config.joint_attention_dim)
        )  # the second passes the network's embedder first
        return True, tuple(widths), tuple(range(len(network.transformer_blocks)))
    kind = type(backbone if network is None else network).__name__
    raise ValueError(
        f"SoftREPA is defined for U-Nets with cross-attention and for joint transformers (SD3, FLUX), and {backbone.name} is "
        f"neither ({kind})"
    )


def check_fit(backbone, soft: SoftTokens) -> None:
    """Raise ValueError for tokens that a model cannot take, naming their file and the shape it expects."""
    joint, widths, layers = takes(backbone)
    which = f"{soft.source or 'these soft tokens'} of shape {tuple(soft.tokens.shape)} for {soft.layers}"
    if joint != soft.joint:
        kinds = (
            "a U-Net, which takes (1, number, {})",
            "a joint transformer, which takes (layers, number, {})",
        )
        raise ValueError(
            f"{which} were made for another family: {backbone.name} is {kinds[joint].format(widths[0])}"
        )
    if missing := [layer for layer in soft.layers if layer not in layers]:
        raise ValueError(f"{which} need the layers {missing}, and {backbone.name} has {layers}")
    found = [soft.tokens.shape[2]] + ([] if soft.time is None else [soft.time.shape[2]])
    if found[0] not in widths or found[1:] not in ([], [widths[0]]):
        raise ValueError(
            f"{which}, of width {' and '.join(map(str, found))}, do not fit {backbone.name}: it takes tokens of width "
            f"{' or '.join(map(str, widths))} and a time index of width {widths[0]}"
        )


@contextlib.contextmanager
def placed(
    backbone, soft: SoftTokens, t: float, branch: Callable[[], str | None] | None = None
) -> Iterator[None]:
    """Inside, the network runs with the tokens of timestep t; carries gradient to them, also under gradient checkpointing.

    branch: tells, during a pass, whose turn it is, where "uncond" is to be left without tokens; None: no pass is.
    """
    check_fit(backbone, soft)
    vectors = _vectors(backbone.network, soft, t)
    inserts = _prepending if soft.joint else _after_start
    handles: list = []
    one_batch = vars(backbone).get("one_batch")
    try:
        if branch is not None:
            backbone.one_batch = False  # rows of one batch cannot have texts of different lengths
        for vector, block in vectors:
            inserts(block, vector, _Passing(branch), handles)
        yield
    finally:
        for handle in handles:
            handle.remove()
        if branch is not None:
            if one_batch is None:
                del backbone.one_batch
            else:
                backbone.one_batch = one_batch


def _vectors(network, soft: SoftTokens, t: float) -> list[tuple[Tensor, torch.nn.Module]]:
    """The tokens at timestep t and the block they enter, one entry a block."""
    tokens = soft.tokens.to(network.device)
    added = soft.time_at(t)
    if not soft.joint:
        tokens = tokens[0] if added is None else (tokens + added.to(tokens))[0]
        return [(tokens, block) for place in soft.layers for block in _attending(network)[place]]
    if tokens.shape[2] != network.inner_dim:
        tokens = network.context_embedder(tokens.to(network.dtype)).to(tokens.dtype)
    tokens = tokens if added is None else tokens + added.to(tokens)
    return [(tokens[n], network.transformer_blocks[k]) for n, k in enumerate(soft.layers)]


def _attending(network) -> dict[str, list[torch.nn.Module]]:
    """The blocks of a U-Net that have cross-attention, by their place."""
    mid = [] if network.mid_block is None else [network.mid_block]
    places = {"down": network.down_blocks, "mid": mid, "up": network.up_blocks}
    return {
        place: [block for block in blocks if getattr(block, "has_cross_attention", False)]
        for place, blocks in places.items()
    }


class _Passing:
    """Which passes go without tokens. Gradient checkpointing runs a block again in backward, when no branch is running any more: what it
    is given then is the very tensor of the first time."""

    def __init__(self, branch: Callable[[], str | None] | None) -> None:
        self.branch, self.left_out = branch, []

    def skips(self, text: Tensor) -> bool:
        """Whether the pass that reads this text goes without tokens."""
        branch = None if self.branch is None else self.branch()
        if branch == "uncond" and torch.is_grad_enabled():
            self.left_out.append(text)
        return branch == "uncond" or (
            branch is None and any(text is other for other in self.left_out)
        )


def _after_start(block, vector: Tensor, passing: _Passing, handles: list) -> None:
    def before(module, args, kwargs):
        text = kwargs["encoder_hidden_states"]
        if passing.skips(text):
            return None
        return args, kwargs | {
            "encoder_hidden_states": torch.cat([text[:, :1], _rows(vector, text), text[:, 1:]], 1)
        }

    handles.append(block.register_forward_pre_hook(before, with_kwargs=True))


def _prepending(block, vector: Tensor, passing: _Passing, handles: list) -> None:
    names, count, entered = list(inspect.signature(block.forward).parameters), len(vector), []

    def before(module, args, kwargs):
        given = (
            dict(zip(names, args, strict=False)) | kwargs
        )  # positional under gradient checkpointing
        text, turned = given["encoder_hidden_states"], given.get("image_rotary_emb")
        entered.append(not passing.skips(text))
        if not entered[-1]:
            return None
        given["encoder_hidden_states"] = torch.cat([_rows(vector, text), text], 1)
        if (
            turned is not None
        ):  # FLUX: all of its text stands at position 0, where nothing is turned
            cos, sin = turned
            given["image_rotary_emb"] = (
                torch.cat([torch.ones_like(cos[:count]), cos]),
                torch.cat([torch.zeros_like(sin[:count]), sin]),
            )
        return (), given

    def after(module, args, output):
        text, hidden = output
        return (text[:, count:] if entered.pop() and text is not None else text), hidden

    handles.append(block.register_forward_pre_hook(before, with_kwargs=True))
    handles.append(block.register_forward_hook(after))


def _rows(vector: Tensor, text: Tensor) -> Tensor:
    """Tokens (m, D) for each row of a text (B, L, D), in its precision."""
    return vector.to(text.dtype).expand(len(text), *vector.shape)
