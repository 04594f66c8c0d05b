"""What can be told of a reward before it guides, without an ideal: do its gradients mean anything?

A reward that small changes fool has gradients that point at what fools it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import noise
from ..denoiser import Denoiser
from ..errors import finite, whole
from ..methods import Fixed
from ..rewards.base import as_reward, decoder_of, score
from ..run import Run
from ..sampler import Sampler
from ..tensors import add_along, norm, unit
from .agreement import renoised_gradients
from .base import ByStep, Result, cosines

MEASURED = {
    "grad_x0bar": "cosine of grad_x0bar h under noise",
    "grad_c": "cosine of grad_c h under noise",
    "right": "right prompt scores highest",
    "attacked": "the same under attack",
}


@dataclass(frozen=True, eq=False, repr=False)
class RewardReport(Result):
    """How a reward answers to small changes of x0bar; of each number (T, B), T steps, B samples."""

    reward: str  # its name
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    strength: float  # of the noise, a share of what it is added to
    attack: float  # root mean square over pixels, in pictures of [0, 1]
    grad_x0bar: ByStep  # cosines in [-1, 1], NaN where there is no gradient
    grad_c: ByStep
    right: ByStep  # 1 or 0
    attacked: ByStep

    def rows(self) -> list[dict]:
        """One row a measurement and step: the mean over samples and its 95 % interval."""
        rows = []
        for name in MEASURED:
            found: ByStep = getattr(self, name)
            for row, i in enumerate(found.steps):
                rows.append({"measured": found.what, "step": i} | found.interval(row)._asdict())
        return rows


def reward_report(
    reward: Callable,
    backbone: Any,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int] | None = None,
    steps: Sequence[int] | None = None,
    strength: float = 0.1,
    attack: float = 0.025,
    draws: int = 2,
    **settings: Any,
) -> RewardReport:
    """Four numbers a step and sample, at the x0bars of a run with a fixed embedding.

    grad_x0bar: the cosine of grad_{x0bar} h at x0bar and at x0bar + n, where n is a normal draw
    made strength ||x0bar|| long; grad_c: that of grad_c h at xt and at xt re-noised with this
    strength, as in `signal_to_noise`; both are means over the draws. right: whether the picture of
    x0bar scores higher with its own prompt than with every other prompt of the batch; attacked:
    whether it still does after one step of L2 length attack sqrt(3 H W) down the gradient of h(own)
    - h(strongest other) (Goodfellow et al. 2015, in L2). No number needs the right picture.

    prompts: B strings, of which no two should be true of one picture; seeds: B numbers, 0 to B - 1
    by default; steps: five evenly over the run by default; settings: of the `Sampler`. A sample and
    step cost 1 + draws gradients, as many again of the reward alone, and 2 B + 2 scores. Raises
    ValueError for fewer than two different prompts, or a strength outside of (0, 1].
    """
    draws, attack = whole("draws", draws, 1), float(finite("attack", attack))
    sampler = Sampler(backbone, Fixed(), **settings)
    run = sampler.start(prompts, seeds=range(len(prompts)) if seeds is None else seeds)
    if len(set(run.prompts)) < 2:
        raise ValueError("a picture is asked for its prompt among others: give two at least")
    steps = steps or range(0, sampler.num_steps, -(-sampler.num_steps // 5))
    if last := max(steps):
        run.step(last)
    found = [_measure(run.fork(at=i), reward, strength, attack, draws) for i in steps]
    measured = {}
    for name, what in MEASURED.items():
        values = torch.stack([columns[name].cpu().double() for columns in found])
        measured[name] = ByStep(what, tuple(steps), values)
    about = as_reward(reward).name, run.prompts, run.seeds
    return RewardReport(*about, float(strength), attack, **measured)


def _measure(
    run: Run, reward: Callable, strength: float, attack: float, draws: int
) -> dict[str, Tensor]:
    """The four numbers at the paused step, (B,) each."""
    moved = renoised_gradients(run, reward, draws, strength)
    seen, texts, around, ranked = run.peek(reward), list(dict.fromkeys(run.prompts)), [], []
    x0bar, size = seen.x0bar, strength * norm(seen.x0bar)
    with run.sampler.pause(run.state) as denoiser:
        for n in range(draws):
            at = (seen.seeds, seen.i, x0bar.shape[1:], torch.float64, f"report {n}")
            near = add_along(x0bar, size, unit(noise.normal(*at).to(x0bar)))
            around.append(denoiser.reward_gradient(reward, near)[1])
        for rows, part in denoiser.parts():
            ranked.append(_ranked(part, reward, x0bar[rows], texts, attack))
    right, attacked = torch.cat(ranked, 1)
    columns = {"grad_x0bar": _agreement(seen.grad_x0bar, around), "right": right}
    return columns | {"grad_c": _agreement(seen.grad, moved), "attacked": attacked}


def _agreement(grad: Tensor, others: Iterable[Tensor]) -> Tensor:
    """The mean cosine of a gradient (B, ...) to others, (B,); NaN where one is zero."""
    pairs = [(grad.cpu(), other.cpu()) for other in others]
    return torch.stack([cosines(a, b) for a, b in pairs]).mean(0)


def _ranked(
    denoiser: Denoiser, reward: Callable, x0bar: Tensor, texts: list[str], attack: float
) -> Tensor:
    """Whether the own prompt scores highest, (2, B), of the pictures and of the attacked ones."""
    own = denoiser.state.prompts
    with torch.no_grad():
        images = decoder_of(reward, denoiser.backbone)(x0bar)
    margin, rivals = _margin(reward, images, own, texts)
    leaf = images.requires_grad_()
    with torch.enable_grad():
        difference = score(reward, leaf, own) - score(reward, leaf, rivals)
    (slope,) = torch.autograd.grad(difference.sum(), leaf)
    moved = images.detach() - attack * images[0].numel() ** 0.5 * unit(slope)
    return torch.stack([margin > 0, _margin(reward, moved, own, texts)[0] > 0])


@torch.no_grad()
def _margin(
    reward: Callable, images: Tensor, own: Sequence[str], texts: list[str]
) -> tuple[Tensor, list[str]]:
    """h with the own prompt less the highest h with another text, (B,), and these texts."""
    scores = torch.stack([score(reward, images, [text] * len(images)) for text in texts], 1)
    places = torch.tensor([texts.index(text) for text in own], device=scores.device)[:, None]
    best, which = scores.scatter(1, places, -torch.inf).max(1)
    return scores.gather(1, places)[:, 0] - best, [texts[k] for k in which.tolist()]
