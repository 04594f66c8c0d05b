"""EBCA: every cross-attention of a U-Net moves the context that it hands to the next one."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import check_finite, has_numbers
from ..registry import option
from ..schedules import Schedule, every
from .base import Method

if TYPE_CHECKING:
    from ..denoiser import Denoiser
    from ..sampler import Sampler

PLAIN = ("AttnProcessor", "AttnProcessor2_0", "SlicedAttnProcessor", "XFormersAttnProcessor")


@dataclass(frozen=True)
class EBCA(Method):
    """Energy-based cross-attention (arXiv 2306.09869): c climbs the posterior of the energies.

    In each cross-attention with queries Q, keys K = c W_K^T and scale 1 / sqrt(d), heads side by
    side, and ||k|| over all heads together,
        c <- c + (gamma_attn softmax_pixels(Q K^T scale)^T Q
                  - gamma_norm softmax_tokens(||k||^2) K) W_K
    The layer itself answers with the context that it was given; the moved one goes on to the next
    layer and is forgotten after the pass. c_org is fed at every step, in both branches of guidance.
    DATE beside it differentiates the network with its moving context. The authors take 0.01 or 0.02
    for both. `StepInfo.extras["ebca_shift"]` (B, L, D) is how far the conditional branch's context
    has moved after the last layer.
    """

    gamma_attn: float = option(
        0.01, label="γ attention", range=(0.0, 0.1), help="The step size towards the queries."
    )
    gamma_norm: float = option(
        0.02, label="γ norm", range=(0.0, 0.1), help="The step size that shrinks the keys."
    )
    when: Schedule = option(every(), help="Which steps move their context.")

    def check(self, sampler: Sampler) -> None:
        super().check(sampler)
        backbone = sampler.backbone
        for layer in cross_attentions(backbone):
            x = torch.linspace(-2, 2, layer.cross_attention_dim, device=backbone.network.device)
            _check_linear(layer.to_k, x[None].to(backbone.dtype))

    @contextlib.contextmanager
    def patch(self, denoiser: Denoiser) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            acts = self.when(denoiser.state.i, denoiser.num_steps)
            if acts and (self.gamma_attn or self.gamma_norm):
                context, network = _Context(self, denoiser), denoiser.backbone.network
                stack.callback(network.register_forward_pre_hook(context.begin).remove)
                stack.callback(network.register_forward_hook(context.end).remove)
                for layer in cross_attentions(denoiser.backbone):
                    stack.callback(layer.set_processor, layer.processor)
                    layer.set_processor(functools.partial(context.attend, layer.processor))
            yield

    def update(self, attn: Any, hidden: Tensor, context: Tensor) -> Tensor:
        """What a layer with hidden states (B, pixels, C) adds to the context, (B, L, D)."""
        exact = torch.promote_types(hidden.dtype, torch.float32)
        queries = attn.to_q(hidden).to(exact)
        keys = attn.to_k(context.to(hidden.dtype)).to(exact)
        q, k = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in (queries, keys))
        attended = (q @ k.mT * attn.scale).softmax(dim=-2).mT @ q  # (B, heads, L, d)
        attended = attended.transpose(1, 2).flatten(2)
        share = keys.square().sum(-1, keepdim=True).softmax(dim=1)
        climb = self.gamma_attn * attended - self.gamma_norm * share * keys
        return climb @ _matrix(attn.to_k, context.to(hidden.dtype)).to(exact)


@torch.no_grad()
def _matrix(layer: torch.nn.Module, like: Tensor) -> Tensor:
    """W of a layer x -> x W^T + b, (out, in), found by asking the layer itself.

    A layer under LoRA or a quantised one has a `weight` that does not say what it does.
    """
    basis = torch.eye(like.shape[-1], dtype=like.dtype, device=like.device)
    return (layer(basis) - layer(torch.zeros_like(basis[:1]))).T


@torch.no_grad()
def _check_linear(layer: torch.nn.Module, x: Tensor) -> None:
    """Raise ValueError for a layer that is not x -> x W^T + b, of which there is no W."""
    said = (layer(x) - layer(0 * x)).float()
    apart = (said - x.float() @ _matrix(layer, x).float().T).abs().max()
    if has_numbers(apart) and not apart <= 0.05 * said.abs().max():
        raise ValueError("EBCA needs a linear to_k in each cross-attention, and this one is not")


class _Context:
    """The context on its way through the network, anew in each forward pass.

    `given` keeps what each layer was given: gradient checkpointing runs a layer a second time, in
    the backward pass, and the layer has to find the same there.
    """

    def __init__(self, method: EBCA, denoiser) -> None:
        self.method, self.denoiser = method, denoiser

    def begin(self, *_) -> None:
        """Start a forward pass of the network."""
        self.given: dict[torch.nn.Module, Tensor] = {}
        self.now: Tensor | None = None

    def attend(self, own, attn, hidden_states, encoder_hidden_states, attention_mask=None):
        """The answer of a layer's own processor, and the context moved for the next layer."""
        again, context = attn in self.given, encoder_hidden_states
        given = self.given.setdefault(attn, context if self.now is None else self.now)
        added = self.method.update(attn, hidden_states, given)
        self.now = self.now if again else given + added
        moved = given.to(context.dtype)
        return own(attn, hidden_states, encoder_hidden_states=moved, attention_mask=attention_mask)

    def end(self, *_) -> None:
        """End a forward pass, and record what it did if it was one of all samples."""
        denoiser, moved = self.denoiser, self.now.detach()
        shift, both = moved - next(iter(self.given.values())).detach(), denoiser.branch == "both"
        per_sample = torch.cat(moved.chunk(2), 2) if both else moved
        message = "EBCA's context is not finite (are its gammas too large?)"
        check_finite(per_sample, message, denoiser.where, denoiser.first)
        if len(per_sample) == len(denoiser.state) and denoiser.branch != "uncond":
            denoiser.extras["ebca_shift"] = shift.chunk(2)[1] if both else shift


def cross_attentions(backbone) -> list:
    """The cross-attention layers of a U-Net; raises ValueError where they are not plain ones."""
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import Attention

    network = getattr(backbone, "network", None)
    if not isinstance(network, UNet2DConditionModel):
        raise ValueError(f"EBCA acts in the cross-attention of a U-Net; {backbone.name} has none")
    layers = [m for m in network.modules() if isinstance(m, Attention) and m.is_cross_attention]
    with backbone.lock:  # no other thread has patched them
        processors = [type(layer.processor).__name__ for layer in layers]
    for layer, processor in zip(layers, processors, strict=True):
        changed = layer.norm_cross is not None or layer.added_kv_proj_dim is not None
        if processor not in PLAIN or changed:
            raise ValueError(
                f"EBCA needs plain cross-attention, and {backbone.name} has {processor} (an "
                "adapter, fused projections or a normalised context?); take that off first"
            )
    return layers
