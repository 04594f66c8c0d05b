"""The contrastive loss of SoftREPA on a matrix of denoising errors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backbones import Backbone
from ..errors import finite
from ..registry import option
from ..schedulers import EDM, is_flow, kind_of
from ..types import Conditioning


@dataclass(frozen=True)
class Contrast:
    """From errors to the loss: which of K captions belongs to an image?

    With e_ij the mean squared denoising error of image i under its j-th caption, all with one noise
    and one timestep, and p(i) the true caption of i,

        l_ij = scale exp(-e_ij / temperature),   or -e_ij / temperature without the exponential
        loss = -1/B sum_i log softmax_j(l_i)_{p(i)} + dweight 1/B sum_i e_{i p(i)}

    With the exponential no pair pulls harder than scale / temperature, and pairs that are denoised
    badly (early steps, wild captions) hardly pull at all.
    """

    scale: float = option(4.0, help="the largest logit")
    temperature: float = option(0.07, help="of the errors, above 0")
    exponential: bool = option(True, help="whether logits are exponentials of the errors")
    dweight: float = option(0.0, help="weight of the denoising error of the true caption")

    def __post_init__(self) -> None:
        for name in ("scale", "temperature", "dweight"):
            finite(name, getattr(self, name))
        if not self.temperature:
            raise ValueError("temperature must be above 0")

    def logits(self, errors: Tensor) -> Tensor:
        """l, (B, K), from errors (B, K)."""
        sharp = -errors / self.temperature
        return self.scale * sharp.exp() if self.exponential else sharp

    def entropy(self, errors: Tensor, positive: Tensor) -> Tensor:
        """The contrastive part alone; positive: (B,), the column of each image's own caption.

        log K minus it bounds the mutual information of image and caption from below (InfoNCE).
        """
        return F.cross_entropy(self.logits(errors), positive)

    def loss(self, errors: Tensor, positive: Tensor) -> Tensor:
        """The whole loss, a scalar; carries gradient."""
        own = errors.gather(1, positive[:, None]).mean()
        return self.entropy(errors, positive) + self.dweight * own


def add_noise(backbone: Backbone, x0: Tensor, eps: Tensor, t: int) -> tuple[Tensor, Tensor]:
    """xt = alpha x0 + sigma eps at training timestep t, and what the network is to answer to it.

    That is eps, v, a velocity or x0, (B, C, h, w), as the model was trained. Raises ValueError for
    a model of EDM's kind, whose timesteps are no places in a table of noise levels.
    """
    scheduler = backbone.scheduler
    if (kind := kind_of(scheduler)) in EDM:
        remedy = "train them on a model of the same network with betas, such as SDXL"
        raise ValueError(f"no soft tokens are trained with the noise of {kind}; {remedy}")
    if is_flow(scheduler):
        sigma = t / scheduler.config.num_train_timesteps
        return (1 - sigma) * x0 + sigma * eps, eps - x0
    alpha_bar = float(scheduler.alphas_cumprod[int(t)])
    alpha, sigma = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    answers = {"epsilon": eps, "v_prediction": alpha * eps - sigma * x0, "sample": x0}
    answer = answers[scheduler.config.get("prediction_type", "epsilon")]
    return alpha * x0 + sigma * eps, answer.expand_as(x0)


def denoising_errors(
    backbone: Backbone, x0: Tensor, cond: Conditioning, columns: Tensor, eps: Tensor, t: int
) -> Tensor:
    """The matrix e of errors, (B, K).

    e_ij is the mean over C, h, w of (network(xt_i, t, c_ij) - target_i)^2.
    x0: (B, C, h, w) clean latents; cond: U texts; columns: (B, K), which of them each image is held
    against; eps: (1, C, h, w), one noise for all pairs, or (B, C, h, w); t: one timestep for all.
    Carries gradient; float32 at least.
    """
    xt, target = add_noise(backbone, x0, eps, t)
    rows = torch.arange(len(x0), device=columns.device).repeat_interleave(columns.shape[1])
    texts = Conditioning.cat([cond[n : n + 1] for n in columns.flatten().tolist()])
    out = backbone.predict(xt[rows], t, texts)
    exact = torch.promote_types(out.dtype, torch.float32)
    errors = (out.to(exact) - target[rows].to(exact)).square().flatten(1).mean(1)
    return errors.view(columns.shape)
