"""One trajectory, sampled as far as somebody asked, and what there is to see at each of its steps. All of one sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..methods import Fixed, SoftREPA
from ..rewards.base import Reward, score
from ..run import Run
from ..sampler import Sampler
from ..types import RewardGradient, State, StepInfo, to_pil

if TYPE_CHECKING:
    from PIL.Image import Image

PICTURES = {
    "xt": "the noisy latent, its first three channels as colours",
    "x0bar": "the expected latent, its first three channels as colours",
    "grad": "where the reward wants the expected latent changed, size of grad_x0bar h, bright is large",
    "guidance": "where the method has changed the expected latent, bright is large",
    "decoded": "the expected picture",
}  # what each picture of a frame shows, in words


@dataclass(frozen=True, eq=False)
class Frame:
    """A step to be shown.

    i, t: the step, i the number of steps for the final picture, which has the maps of the last step; done: whether it is that;
    updated: whether the method did something in this step; h: the reward of the decoded picture;
    values: of all rewards by name; h_before, grad_norm: h and ||grad_c h|| before the update; distance: ||c - c_org||; pictures: by
    the names of `PICTURES`; scales: the largest value of each map; statements: the oracle's, with their truth, None without one;
    words, shares, moved: by token, its share of ||grad_c h||^2 and of ||c - c_org||^2, padding put together.
    """

    i: int
    t: float
    done: bool
    updated: bool
    h: float
    h_before: float
    grad_norm: float
    distance: float
    values: dict[str, float]
    pictures: dict[str, Image]
    scales: dict[str, float]
    words: tuple[str, ...]
    shares: tuple[float, ...]
    moved: tuple[float, ...]
    statements: tuple[tuple[str, bool], ...] | None = None
    seen: str = field(default="", repr=False)


class Branch:
    """A run of one sample that is only ever sampled further; steps once taken are looked up.

    parent: the branch that the run was forked from, whose findings on the common past are shared.
    """

    def __init__(self, run: Run, parent: Branch | None = None) -> None:
        self.run = run
        self.num_steps = run.sampler.num_steps
        self._states, self._infos = run.states, list(run.history)
        start = len(self._infos)
        past = lambda found, step: {key: value for key, value in found.items() if step(key) < start}
        self._samplers = [*(parent._samplers if parent else []), (start, run.sampler)]
        self._values: dict[tuple[int, str], float] = (
            past(parent._values, lambda key: key[0]) if parent else {}
        )
        self._pictures: dict[int, Image] = past(parent._pictures, lambda key: key) if parent else {}
        self._looks: dict[tuple[int, Reward], RewardGradient] = (
            past(parent._looks, lambda key: key[0]) if parent else {}
        )
        self._latest: tuple[int, Tensor] | None = None

    def sampler(self, i: int) -> Sampler:
        """The sampler that takes step i."""
        return next(sampler for start, sampler in reversed(self._samplers) if start <= i)

    @property
    def taken(self) -> int:
        """How many steps have been sampled."""
        return len(self._infos)

    def info(self, i: int) -> StepInfo:
        """What happened in step i, sampled up to there if need be."""
        while len(self._infos) <= i:
            self._infos.append(self.run.step())
            self._states.append(self.run.state)
        return self._infos[i]

    def state(self, i: int) -> State:
        """The state before step i; i = num_steps is the end."""
        if i:
            self.info(i - 1)
        return self._states[i]

    def updated(self, i: int) -> bool:
        """Whether the method moved the embedding in step i, brought soft tokens in, or left a note that it did something else."""
        method = self.sampler(i).method
        soft = any(
            isinstance(part, SoftREPA) and part.when(i, self.num_steps)
            for part in getattr(method, "parts", (method,))
        )
        return soft or self.info(i).updated or bool(self.info(i).notes)

    def look(self, i: int, reward: Reward) -> RewardGradient:
        """x0bar, h and its gradients where the method looks at step i, whether or not it did."""
        known, info = self._looks.get((i, reward)), self.info(i)
        if known is None:
            if info.grad is not None and self.sampler(i).method.reward is reward:
                known = RewardGradient(
                    i,
                    info.t,
                    info.prompts,
                    info.seeds,
                    info.at,
                    info.x0bar,
                    info.h,
                    info.grad_x0bar,
                    info.grad,
                    decode=info.decode,
                )
            else:
                known = self.sampler(i).look(self.state(i), reward)
            self._looks[i, reward] = known
        return known

    def picture(self, i: int) -> Image:
        """x0bar_hat of step i decoded, what the solver used; the final picture for i = num_steps."""
        if i not in self._pictures:
            self._pictures[i] = to_pil(self._decoded(i))[0]
        return self._pictures[i]

    def value(self, i: int, name: str, reward: Reward) -> float:
        """A reward of that picture."""
        if (i, name) not in self._values:
            with torch.no_grad():
                self._values[i, name] = score(
                    reward, self._decoded(i), self.run.prompts, f" at step {i}"
                ).item()
        return self._values[i, name]

    def h(self, i: int, weights: Sequence[tuple[str, float]], parts: dict[str, Reward]) -> float:
        """The weighted sum of the rewards of that picture."""
        return sum(weight * self.value(i, name, parts[name]) for name, weight in weights if weight)

    def directions(self, reward: Reward) -> dict[int, Tensor]:
        """The directions known so far by step, (L D,)."""
        return {
            i: look.direction.flatten()
            for (i, used), look in sorted(self._looks.items(), key=lambda row: row[0][0])
            if used is reward
        }

    def cosines(self, i: int, reward: Reward) -> tuple[list[int], list[float]]:
        """The cosines of the direction at step i with those of the steps known so far: (steps, values)."""
        here, known = self.look(i, reward).direction.flatten(), self.directions(reward)
        return list(known), [float(here @ other) for other in known.values()]

    @torch.no_grad()
    def change(self, i: int) -> Tensor:
        """x0bar_hat - x0bar(xt, c_org): what the method has changed at step i, (1, C, h, w)."""
        info, state = self.info(i), self.state(i)
        if not self.updated(i) and self.state(i + 1).cond.same(
            state.cond_org
        ):  # the network was fed what the text encoder said
            return torch.zeros_like(info.x0bar_hat)
        return (
            info.x0bar_hat
            - self.sampler(i).replace(method=Fixed()).predict(state, state.cond_org).x0bar
        )

    def frame(
        self,
        i: int,
        reward: Reward,
        parts: dict[str, Reward],
        weights: Sequence[tuple[str, float]],
        *,
        judged: bool,
    ) -> Frame:
        """Everything that is shown of step i; num_steps for the end."""
        last = min(i, self.num_steps - 1)
        look, info, state = self.look(last, reward), self.info(last), self.state(i)
        maps = {"grad": size_map(look.grad_x0bar), "guidance": size_map(self.change(last))}
        done = i == self.num_steps
        pictures = {
            "xt": false_colours(state.xt),
            "x0bar": false_colours(state.xt if done else info.x0bar_hat),
            **{name: heat(values) for name, values in maps.items()},
            "decoded": self.picture(i),
        }
        tokens = (
            state.cond_org.tokens[0]
            if state.cond_org.tokens
            else [f"token {n}" for n in range(state.c.shape[1])]
        )
        words, by_token = gathered_tokens(tokens, look.grad[0], (info.c - state.c_org)[0])
        claims, seen = self._verdict(i) if judged else (None, "")
        return Frame(
            i=i,
            t=state.t,
            done=done,
            updated=self.updated(last),
            h=self.h(i, weights, parts),
            h_before=look.h.item(),
            grad_norm=look.grad_norm.item(),
            distance=info.distance.item(),
            values={name: self.value(i, name, part) for name, part in parts.items()},
            pictures=pictures,
            scales={name: values.max().item() for name, values in maps.items()},
            words=words,
            shares=by_token[0],
            moved=by_token[1],
            statements=claims,
            seen=seen,
        )

    def _verdict(self, i: int) -> tuple[tuple[tuple[str, bool], ...] | None, str]:
        from ..shapes.oracle import judge

        try:
            verdict = judge([self.picture(i)], self.run.prompts)[0]
        except ValueError:  # the prompt is outside the grammar
            return None, ""
        return verdict.statements, ", ".join(
            f"{thing.colour} {thing.shape}" for thing in verdict.things
        ) or "nothing"

    @torch.no_grad()
    def _decoded(self, i: int) -> Tensor:
        if self._latest is None or self._latest[0] != i:
            latents = self.state(i).xt if i == self.num_steps else self.info(i).x0bar_hat
            self._latest = (i, self.run.sampler.backbone.decode(latents))
        return self._latest[1]


def size_map(x: Tensor) -> Tensor:
    """Root mean square over channels, (1, C, h, w) to (h, w)."""
    return x[0].double().square().mean(0).sqrt()


def heat(values: Tensor) -> Image:
    """A map (h, w), 0 to its largest value, in colours that differ in brightness too."""
    from matplotlib import colormaps
    from PIL import Image

    share = (values / values.max().clamp_min(1e-30)).cpu().numpy()
    return Image.fromarray((colormaps["cividis"](share)[..., :3] * 255).round().astype("uint8"))


def false_colours(latent: Tensor) -> Image:
    """The first three channels of a latent (1, C, h, w) as red, green and blue; grey is 0, and the ends are at 3 standard deviations."""
    shown = latent[:, :3] if latent.shape[1] >= 3 else latent[:, :1].expand(-1, 3, -1, -1)
    return to_pil(0.5 + shown / (6 * shown.std().clamp_min(1e-30)))[0]


def gathered_tokens(
    tokens: Sequence[str], *rows: Tensor
) -> tuple[tuple[str, ...], tuple[tuple[float, ...], ...]]:
    """Words with all padding as one, and for each tensor (L, D) the words' shares of its squared length (all 0 where it is 0)."""
    kept = [n for n, word in enumerate(tokens) if word != "<pad>"]
    padding = [n for n, word in enumerate(tokens) if word == "<pad>"]
    words = tuple(tokens[n] for n in kept) + ((f"<pad> x{len(padding)}",) if padding else ())
    shares = []
    for row in rows:
        squares = row.double().square().sum(1)
        squares = squares / (squares.sum() + (squares.sum() == 0))
        shares.append(
            tuple(squares[kept].tolist()) + ((squares[padding].sum().item(),) if padding else ())
        )
    return words, tuple(shares)
