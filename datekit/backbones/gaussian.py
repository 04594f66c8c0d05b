"""A model whose right answers are known: p(x0 | c) is a Gaussian mixture, smooth in c.

With xt = alpha x0 + sigma eps each component stays Gaussian, so log p(xt | c), the score and the
posterior mean are formulas. Nothing is symmetric: a wrong sign shows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import noise
from ..types import Conditioning
from .base import Backbone, Prompts, Recommended, Shape
from .text import warn_cut

SHAPE, SIDE = (3, 8, 8), 32  # of the latent, and pixels a side
POSITIONS, WIDTH = 8, 6  # L, D
_UNITS = 12  # of the curved part of a mean


class GaussianBackbone(Backbone):
    """p(x0 | c) = sum_k w_k(c) N(mu_k(c), diag v_k): one component is unimodal, several are not.

    With n = L D entries of c: mu_k(c) = m_k + Phi (A_k c + U_k tanh(V_k c + b_k)),
    w = softmax(W c + a), and Phi the smooth pictures that low frequencies make. components: K;
    seed: makes other parameters of the same kind.
    """

    models: ClassVar = {"gaussian": {"components": 1}, "gaussian-mixture": {"components": 4}}
    recommended = Recommended(num_steps=50, guidance_scale=1.0)
    factor = SIDE // SHAPE[1]

    def __init__(
        self,
        components: int = 1,
        *,
        seed: int = 0,
        source: str | None = None,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        from diffusers import DDIMScheduler

        self.components, self.seed = components, seed
        self.source, self.name = source, source or f"gaussian of {components}"
        self.device, self.dtype = torch.device(device), dtype or torch.float64
        betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
        self.scheduler = DDIMScheduler(
            **betas, clip_sample=False, set_alpha_to_one=False, steps_offset=1
        )
        phi, k = _smooth_pictures(), components
        q, n = phi.shape[1], POSITIONS * WIDTH
        self._phi = self._put(phi)
        self._m = self._put(self._draw("m", k, q) @ phi.T * 0.25 + self._draw("offset", k, 1) * 0.1)
        self._linear = self._put(self._draw("A", k, q, n) * 0.5 / math.sqrt(n))
        self._out = self._put(self._draw("U", k, q, _UNITS) * 0.7 / math.sqrt(_UNITS))
        self._in = self._put(self._draw("V", k, _UNITS, n) * 1.2 / math.sqrt(n))
        self._bias = self._put(self._draw("b", k, _UNITS) * 0.5)
        self._v = self._put(0.02 * torch.exp(0.6 * self._draw("v", k, math.prod(SHAPE))))
        self._gate = self._put(self._draw("W", k, n) * 1.2 / math.sqrt(n))
        self._gate_bias = self._put(self._draw("a", k) * 0.4)

    def _put(self, x: Tensor) -> Tensor:
        return x.to(self.device, self.dtype)

    def _draw(self, purpose: str, *shape: int) -> Tensor:
        return noise.normal([self.seed], 0, shape, torch.float64, purpose=f"gaussian {purpose}")[0]

    def encode(self, prompts: Prompts, *, negative: bool = False) -> Conditioning:
        """Each word's own fixed vector plus its position's, (B, 8, 6)."""
        tokens = tuple(_words(prompt or "") for prompt in prompts)
        words = [self._draw(f"word {word}", WIDTH) for word in itertools.chain(*tokens)]
        place = 0.5 * self._draw("positions", POSITIONS, WIDTH)
        sequence = torch.stack(words).view(-1, POSITIONS, WIDTH) + place
        return Conditioning(self._put(sequence), tokens=tokens)

    def predict(self, xt: Tensor, t: float, cond: Conditioning) -> Tensor:
        """The exact noise, -sigma grad_x log p(xt | c), (B, 3, 8, 8); carries gradient to both."""
        return -self.level(t)[1] * self.score(xt, t, cond)

    def decode(self, latents: Tensor) -> Tensor:
        """0.3 x + 0.5, enlarged."""
        return F.interpolate(0.3 * latents + 0.5, scale_factor=self.factor, mode="bilinear")

    def latent_shape(self, height: int | None = None, width: int | None = None) -> Shape:
        if {height, width} - {None, SIDE}:
            raise ValueError(f"pictures of {self.name} have {SIDE} pixels a side and no other size")
        return SHAPE

    def level(self, t: float) -> tuple[float, float]:
        """(alpha, sigma) of timestep t, in double precision, from the scheduler's own table."""
        alpha_bar = self.scheduler.alphas_cumprod.double()[int(t)]
        return alpha_bar.sqrt().item(), (1 - alpha_bar).sqrt().item()

    def means(self, cond: Conditioning) -> Tensor:
        """mu_k(c), (B, K, 3 * 8 * 8)."""
        c = cond.sequence.flatten(1)
        curved = torch.tanh(torch.einsum("kun,bn->bku", self._in, c) + self._bias)
        modes = torch.einsum("kqn,bn->bkq", self._linear, c)
        modes = modes + torch.einsum("kqu,bku->bkq", self._out, curved)
        return self._m + modes @ self._phi.T

    def log_weights(self, cond: Conditioning) -> Tensor:
        """log w_k(c), (B, K)."""
        return torch.log_softmax(cond.sequence.flatten(1) @ self._gate.T + self._gate_bias, dim=1)

    def log_prob(self, xt: Tensor, t: float, cond: Conditioning) -> Tensor:
        """log p(xt | c), exact, (B,); carries gradient to both."""
        return torch.logsumexp(self._parts(xt, t, cond)[0], dim=1)

    def score(self, xt: Tensor, t: float, cond: Conditioning) -> Tensor:
        """grad_x log p(xt | c) = -sum_k r_k (xt - alpha mu_k) / S_k, with the posterior r of k."""
        joint, weighted, _ = self._parts(xt, t, cond)
        return -torch.einsum("bk,bkd->bd", joint.softmax(1), weighted).view_as(xt)

    def x0bar(self, xt: Tensor, t: float, cond: Conditioning) -> Tensor:
        """E[x0 | xt, c] = sum_k r_k (mu_k + alpha v_k (xt - alpha mu_k) / S_k), (B, 3, 8, 8)."""
        joint, weighted, mu = self._parts(xt, t, cond)
        means = mu + self.level(t)[0] * self._v * weighted
        return torch.einsum("bk,bkd->bd", joint.softmax(1), means).view_as(xt)

    def sample(self, cond: Conditioning, seeds: Sequence[int]) -> Tensor:
        """x0 ~ p(x0 | c), one for each row of cond and its seed, (B, 3, 8, 8)."""
        return _sample(self.log_weights(cond), self.means(cond), self._v, seeds)

    def sample_posterior(
        self, xt: Tensor, t: float, cond: Conditioning, seeds: Sequence[int]
    ) -> Tensor:
        """x0 ~ p(x0 | xt, c), one for each row and its seed, (B, 3, 8, 8); its mean is `x0bar`."""
        joint, weighted, mu = self._parts(xt, t, cond)
        alpha, sigma = self.level(t)
        means = mu + alpha * self._v * weighted
        narrowed = self._v * sigma**2 / (alpha**2 * self._v + sigma**2)
        return _sample(joint.log_softmax(1), means, narrowed, seeds)

    def _parts(self, xt: Tensor, t: float, cond: Conditioning) -> tuple[Tensor, Tensor, Tensor]:
        """log w_k density_k (B, K), (xt - alpha mu_k) / S_k, mu_k; S_k = alpha^2 v_k + sigma^2."""
        alpha, sigma = self.level(t)
        mu, spread = self.means(cond), alpha**2 * self._v + sigma**2
        away = xt.flatten(1)[:, None] - alpha * mu
        density = -0.5 * (away**2 / spread + torch.log(2 * math.pi * spread)).sum(2)
        return self.log_weights(cond) + density, away / spread, mu


def _sample(log_weights: Tensor, means: Tensor, variances: Tensor, seeds: Sequence[int]) -> Tensor:
    generators = noise.generators(seeds, 0, "gaussian component")
    which = []
    for weights, generator in zip(log_weights.exp(), generators, strict=True):
        which.append(torch.multinomial(weights.cpu(), 1, generator=generator).item())
    z = noise.normal(seeds, 0, (math.prod(SHAPE),), torch.float64, purpose="gaussian sample")
    chosen = means[range(len(means)), which]
    return (chosen + variances[which].sqrt() * z.to(means)).view(-1, *SHAPE)


def _words(prompt: str) -> tuple[str, ...]:
    """The words at the positions: '<start>', words, '<end>', then '<pad>'; warns of lost ones."""
    words = ["<start>", *prompt.lower().split(), "<end>"]
    if lost := words[POSITIONS - 1 : -1]:
        warn_cut(" ".join(lost), POSITIONS)
        words = [*words[: POSITIONS - 1], "<end>"]
    return (*words, *["<pad>"] * (POSITIONS - len(words)))


def _smooth_pictures() -> Tensor:
    """Phi, (d, 27): the 3 x 3 lowest cosines of each channel, tilted so that no axis is special."""
    channels, size, _ = SHAPE
    place, number = torch.arange(size) + 0.5 + 0.2, torch.arange(3)
    cosines = torch.cos(torch.pi * number[:, None] * place / size).double()
    plane = torch.einsum("ih,jw->ijhw", cosines, cosines).view(9, -1)
    fading = 1 / (1 + number[:, None] + number).double().view(9, 1)
    eye = torch.eye(channels, dtype=torch.float64)
    return torch.kron(eye, (plane * fading).T.contiguous())
