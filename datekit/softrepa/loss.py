"""The contrastive loss of SoftREPA on a matrix of denoising errors, and what it says of mutual information."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..methods.base import finite
from ..types import Conditioning


@dataclass(frozen=True)
class Contrast:
    """From errors to the loss: which of K captions belongs to an image?

    With e_ij the mean squared denoising error of image i under its j-th caption, all with one noise and one timestep,
        l_ij = scale exp(-e_ij / temperature)        (exponential; the raw variant is l_ij = -e_ij / temperature)
        loss = -1/B sum_i log softmax_j(l_i)_{p(i)} + dweight 1/B sum_i e_{i p(i)},   p(i) the true caption of i.
    The exponential bounds l in [0, scale], so that no pair pulls harder than scale / temperature, and pairs that are denoised badly
    (early steps, wild captions) hardly pull at all.
    """

    scale: float = 4.0
    temperature: float = 0.07
    exponential: bool = True
    dweight: float = 0.0

    def __post_init__(self) -> None:
        for name in ("scale", "temperature", "dweight"):
            finite(name, getattr(self, name))
        if not self.temperature:
            raise ValueError("temperature must be above 0")
        if not isinstance(self.exponential, bool):
            raise ValueError(f"exponential must be True or False, got {self.exponential!r}")

    def logits(self, errors: Tensor) -> Tensor:
        """l, (B, K), from errors (B, K)."""
        sharp = -errors / self.temperature
        return self.scale * sharp.exp() if self.exponential else sharp

    def entropy(self, errors: Tensor, positive: Tensor) -> Tensor:
        """The contrastive part alone, a scalar: errors (B, K), positive (B,) the column of each image's own caption."""
        return F.cross_entropy(self.logits(errors), positive)

    def loss(self, errors: Tensor, positive: Tensor) -> Tensor:
        """The whole loss, a scalar; carries gradient."""
        total = self.entropy(errors, positive)
        return (
            total + self.dweight * errors.gather(1, positive[:, None]).mean()
            if self.dweight
            else total
        )

    def information(self, errors: Tensor, positive: Tensor) -> Tensor:
        """A lower bound, in nats, of the mutual information of image and caption at this noise level: log K - entropy (InfoNCE), a scalar.

        It holds in expectation, where the K - 1 other captions are drawn independently of the image; it can never exceed log K.
        """
        return math.log(errors.shape[1]) - self.entropy(errors, positive)


def level(backbone, t: int) -> tuple[float, float]:
    """(alpha, sigma) of xt = alpha x0 + sigma eps at training timestep t: (1 - t / 1000, t / 1000) for flows."""
    scheduler = backbone.scheduler
    if _kind(scheduler) == "flow":
        sigma = t / scheduler.config.num_train_timesteps
        return 1 - sigma, sigma
    alpha_bar = float(scheduler.alphas_cumprod[int(t)])
    return math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)


def target(backbone, x0: Tensor, eps: Tensor, t: int) -> Tensor:
    """What the network is to answer at timestep t: eps, v = alpha eps - sigma x0, the velocity eps - x0, or x0; (B, C, h, w)."""
    kind = _kind(backbone.scheduler)
    alpha, sigma = level(backbone, t)
    known = {
        "epsilon": lambda: eps,
        "flow": lambda: eps - x0,
        "v_prediction": lambda: alpha * eps - sigma * x0,
        "sample": lambda: x0,
    }
    if kind not in known:
        raise ValueError(
            f"{backbone.name} predicts {kind!r}, for which no denoising error is defined here"
        )
    return known[kind]().expand_as(x0)


def denoising_errors(
    backbone,
    x0: Tensor,
    cond: Conditioning,
    columns: Tensor,
    eps: Tensor,
    t: int,
    *,
    chunk: int | None = None,
) -> Tensor:
    """The matrix of errors e, (B, K), float32 at least: mean over C, h, w of (network(xt_i, t, c_ij) - target_i)^2.

    x0: (B, C, h, w) clean latents; cond: U texts; columns: (B, K), which of them each image is held against; eps: (1, C, h, w), one noise
    for all pairs, or (B, C, h, w); t: one timestep for all; chunk: pairs computed at a time, all by default. Carries gradient.
    """
    alpha, sigma = level(backbone, t)
    xt, aim = alpha * x0 + sigma * eps, target(backbone, x0, eps, t)
    images = torch.arange(len(x0), device=columns.device)[:, None].expand_as(columns).flatten()
    texts, parts = columns.flatten(), []
    for start in range(0, len(texts), chunk or len(texts)):
        rows, which = (index[start : start + (chunk or len(texts))] for index in (images, texts))
        out = backbone.predict(xt[rows], t, pick(cond, which))
        exact = torch.promote_types(out.dtype, torch.float32)
        parts.append((out.to(exact) - aim[rows].to(exact)).square().flatten(1).mean(1))
    return torch.cat(parts).view(columns.shape)


def pick(cond: Conditioning, rows: Tensor) -> Conditioning:
    """The texts of some rows, in any order and as often as they are named."""
    part = lambda x: None if x is None else x[rows]
    return Conditioning(
        cond.sequence[rows],
        part(cond.pooled),
        extras={name: value[rows] for name, value in cond.extras.items()},
    )


def _kind(scheduler) -> str:
    kind = (
        "flow"
        if type(scheduler).__name__.startswith("FlowMatch")
        else scheduler.config.get("prediction_type", "epsilon")
    )
    return "flow" if kind == "flow_prediction" else kind
