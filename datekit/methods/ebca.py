"""EBCA: every cross-attention of a U-Net moves the context that it hands to the next one."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..rewards.base import check_finite
from ..schedules import Schedule, as_schedule, every
from ..types import norm
from .base import Method, finite

PLAIN = ("AttnProcessor", "AttnProcessor2_0", "SlicedAttnProcessor", "XFormersAttnProcessor")


@dataclass(frozen=True)
class EBCA(Method):
    """Energy-based cross-attention (arXiv 2306.09869): the context climbs the log posterior of the attention's energies.

    In each cross-attention with queries Q, keys K = c W_K^T and scale 1 / sqrt(d), heads side by side,
        c <- c + (gamma_attn softmax_pixels(Q K^T scale)^T Q - gamma_norm softmax_tokens(||k||^2) K) W_K
    with ||k|| over all heads together. The layer itself answers with the context it was given; the moved one goes on to the next,
    down, middle and up, and is forgotten after the pass: c_org is fed at every step. gamma_attn, gamma_norm: step sizes
    (the authors take 0.01 or 0.02); when: which steps (they switch it off after a share of them); negative: whether the
    unconditional branch moves its context too, as in the authors' text-to-image pipeline. Everything carries gradient, so that
    DATE beside it differentiates the network with its moving context.

    `StepInfo.notes` has ebca_shift (B, L, D), by how much the last layer's context has moved, and ebca_norms (B, layers), how far
    it had moved after each, both of the conditional branch. Raises ValueError on a model that is no U-Net (joint attention, as in SD3 and
    FLUX, has no context apart from the picture), or whose attention was replaced (IP-Adapter, fused projections).
    """

    gamma_attn: float = 0.01
    gamma_norm: float = 0.02
    when: Schedule = field(default_factory=every)
    negative: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "gamma_attn", finite("gamma_attn", self.gamma_attn))
        object.__setattr__(self, "gamma_norm", finite("gamma_norm", self.gamma_norm))
        if not isinstance(self.negative, bool):
            raise ValueError(f"negative must be True or False, got {self.negative!r}")
        object.__setattr__(self, "when", as_schedule(self.when))

    def check(self, sampler) -> None:
        """Raise ValueError where the schedule or the model does not fit."""
        self.when.indices(sampler.num_steps)
        cross_attentions(sampler.backbone)

    def patch(self, denoiser) -> AbstractContextManager:
        """Its processors in place of the network's own, which are back afterwards, whatever happens in between."""
        if not (self.gamma_attn or self.gamma_norm) or not self.when(
            denoiser.state.i, denoiser.num_steps
        ):
            return contextlib.nullcontext()
        return self._patched(denoiser)

    @contextlib.contextmanager
    def _patched(self, denoiser):
        layers, passing = cross_attentions(denoiser.backbone), _Pass(self, denoiser)
        own = [layer.processor for layer in layers]
        hooks = []
        try:
            hooks.append(denoiser.backbone.network.register_forward_pre_hook(passing.begin))
            hooks.append(denoiser.backbone.network.register_forward_hook(passing.end))
            for layer, processor in zip(layers, own, strict=True):
                layer.set_processor(_MovingContext(processor, passing))
            yield
        finally:
            for layer, processor in zip(layers, own, strict=True):
                layer.set_processor(processor)
            for hook in hooks:
                hook.remove()

    def update(self, attn, hidden: Tensor, context: Tensor) -> Tensor:
        """What one layer adds to the context: hidden (B, pixels, C), context (B, L, D) to (B, L, D), float32 at least."""
        exact = torch.promote_types(hidden.dtype, torch.float32)
        heads = lambda x: (
            x.to(exact).unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        )  # (B, heads, pixels or L, d)
        joined = lambda x: x.transpose(1, 2).flatten(2)
        q, k = heads(attn.to_q(hidden)), heads(attn.to_k(context.to(hidden.dtype)))
        attended = joined((q @ k.mT * attn.scale).softmax(dim=-2).mT @ q)
        k = joined(k)
        share = k.square().sum(-1, keepdim=True).softmax(dim=1)
        return (self.gamma_attn * attended - self.gamma_norm * share * k) @ attn.to_k.weight.to(
            exact
        )


class _Pass:
    """The context on its way through the network, once a forward pass.

    `before` keeps what each layer was given: gradient checkpointing runs a layer a second time, in backward, and it has to
    find the same there.
    """

    def __init__(self, method: EBCA, denoiser) -> None:
        self.method, self.denoiser = method, denoiser
        self.before: dict[_MovingContext, Tensor] = {}
        self.context: Tensor | None = None
        self.norms: list[Tensor] = []

    def begin(self, *_) -> None:
        """A forward pass of the network starts."""
        self.before, self.context, self.norms = {}, None, []

    def end(self, *_) -> None:
        """A forward pass is over: what it did is noted, if it was one of all samples. Raises NonFiniteError for a context that is not."""
        state = self.denoiser.state
        if self.norms:
            both = self.denoiser.branch == "both"
            moved = torch.cat(self.context.detach().chunk(2), 2) if both else self.context.detach()
            check_finite(
                moved,
                "EBCA's context is not finite (are its gammas too large?)",
                self.denoiser.where,
                self.denoiser.first,
            )
        if self.norms and len(self.norms[0]) == len(state):
            start = next(iter(self.before.values()))
            self.denoiser.notes |= {
                "ebca_shift": self._conditional(self.context - start).detach(),
                "ebca_norms": torch.stack(self.norms, 1),
            }

    def through(self, layer: _MovingContext, attn, hidden: Tensor, given: Tensor) -> Tensor:
        """The context for a layer; what follows it is there for the next."""
        again = layer in self.before
        context = self.before.setdefault(layer, given if self.context is None else self.context)
        added = self._restricted(self.method.update(attn, hidden, context))
        if not again:
            self.context = context + added
            self.norms.append(
                norm(self._conditional(self.context - next(iter(self.before.values()))).detach())
            )
        return context.to(given.dtype)

    def _restricted(self, added: Tensor) -> Tensor:
        if self.method.negative or self.denoiser.branch in ("cond", None):
            return added
        kept = self._conditional(added)
        return torch.cat([torch.zeros_like(added[: len(added) - len(kept)]), kept])

    def _conditional(self, rows: Tensor) -> Tensor:
        return {"uncond": rows[:0], "both": rows[len(rows) // 2 :]}.get(self.denoiser.branch, rows)


class _MovingContext:
    """An attention processor that answers as the one it stands for, from the context that has moved so far."""

    def __init__(self, own, passing: _Pass) -> None:
        self.own, self.passing = own, passing

    def __call__(
        self,
        attn,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        context = self.passing.through(self, attn, hidden_states, encoder_hidden_states)
        return self.own(
            attn, hidden_states, encoder_hidden_states=context, attention_mask=attention_mask
        )


def cross_attentions(backbone) -> list:
    """The cross-attention layers of a U-Net. Raises ValueError where there are none, or not plain ones."""
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import Attention

    network = getattr(backbone, "network", None)
    if not isinstance(network, UNet2DConditionModel):
        kind = type(backbone if network is None else network).__name__
        raise ValueError(
            f"EBCA moves the context inside the cross-attention of a U-Net, and {backbone.name} has none ({kind}): with joint "
            "attention, as in SD3 and FLUX, text and picture are one sequence and the method is not defined"
        )
    layers = [
        module
        for module in network.modules()
        if isinstance(module, Attention) and module.is_cross_attention
    ]
    for layer in layers:
        found = type(layer.processor).__name__
        if (
            found not in PLAIN
            or layer.norm_cross is not None
            or layer.added_kv_proj_dim is not None
            or not hasattr(layer.to_k, "weight")
        ):
            raise ValueError(
                f"EBCA needs plain cross-attention, and {backbone.name} has {found} (an adapter, fused projections or a "
                "normalised context?); take that off first"
            )
    return layers
