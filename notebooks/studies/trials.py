"""Trials: the fixed parts of a paired comparison. Prompts, noise and judges stay; methods vary.

The guiding reward is what methods optimise; the held-out reward and the oracle only judge.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import datekit as dk
from datekit.evaluation.metrics import features, frechet_distance, real_pictures
from datekit.rewards.base import Reward, score
from studies import prompt_sets
from studies.mistakes import shares
from studies.results import CLOCK, COST

JUDGES = {
    "guide": "shapes-clip",
    "heldout": "shapes-clip-heldout",
    "preference": "shapes-preference",
    "aesthetic": "shapes-aesthetic",
}
GUIDES = JUDGES | {"plain": "shapes-clip-plain"}


@dataclass(frozen=True)
class Batch:
    """Prompts and seeds that are drawn together; start: the number of the first among all pairs."""

    start: int
    prompts: list[str]
    seeds: list[int]


Draw = Callable[[Batch], Tensor]  # pictures (B, 3, H, W) of a batch


class Trials:
    """A backbone, judges, and prompts in batches, each prompt with a seed of its own.

    model: a name of `dk.load`. seed: of the noise of all pairs. steps: of sampling, the model's own
    number where left out. judges: names of `GUIDES` that judge beside the oracle. tuning: the
    trials on which strengths are chosen, these themselves where left out.
    """

    def __init__(
        self,
        model: str,
        prompts: list[str],
        seed: int,
        *,
        steps: int | None = None,
        batch: int = 16,
        judges: Sequence[str] = ("guide", "heldout"),
        tuning: Trials | None = None,
    ) -> None:
        self.model, self.prompts, self.batch = model, prompts, batch
        self.backbone = dk.load(model, device="cpu")
        self.steps = self.backbone.recommended.num_steps if steps is None else steps
        self.judges = {name: dk.rewards.load(GUIDES[name]) for name in judges}
        self.guide, self.heldout = self.judges["guide"], self.judges["heldout"]
        self.seeds = [seed * 1_000_003 + n for n in range(len(prompts))]
        self.tuning = self if tuning is None else tuning

    def batches(self, pairs: int | None = None) -> Iterator[Batch]:
        """The first `pairs` pairs, all by default, a batch at a time."""
        end = len(self.prompts) if pairs is None else pairs
        for start in range(0, end, self.batch):
            rows = slice(start, min(start + self.batch, end))
            yield Batch(start, self.prompts[rows], self.seeds[rows])

    def sample(self, method: dk.Method, *, count: int = 1, **settings) -> Draw:
        """What draws a batch by a method.

        settings: of the `dk.Sampler`, its backbone included. count: pictures of each pair, of which
        the guiding reward keeps the best; the first comes from the paired noise.
        """
        settings = {"backbone": self.backbone, "num_steps": self.steps} | settings
        sampler = dk.Sampler(settings.pop("backbone"), method, **settings)
        if count > 1:
            sampler = dk.best_of(sampler, count, self.guide)

        def draw(batch: Batch) -> Tensor:
            run = sampler.start(batch.prompts, seeds=batch.seeds)
            return run.finish(progress=False).pixels

        return draw

    def reward(self, name: str) -> Any:
        """A judge by name; a sum, "a + b", on a common scale; or the guide over a prompt's parts.

        The scale is the spread over pictures that the fixed embedding draws for the tuning pairs.
        """
        if name == "min over parts, each alone":
            return dk.rewards.PerConcept(self.guide, prompt_sets.parts, "min", None)
        if name.endswith(" over parts"):
            reduce = name.split()[0]
            return dk.rewards.PerConcept(self.guide, prompt_sets.parts, reduce, prompt_sets.without)
        parts = [self.judges[part] for part in name.split(" + ")]
        if len(parts) == 1:
            return parts[0]
        return to_common_scale(sum(parts), self.tuning.plain_pictures, self.tuning.prompts)

    @functools.cached_property
    def plain_pictures(self) -> Tensor:
        """What the fixed embedding draws for all pairs, (N, 3, H, W)."""
        draw = self.sample(dk.Fixed())
        return torch.cat([draw(batch) for batch in self.batches()])

    def norm(self) -> float:
        """||c_org||, averaged over the first 64 prompts."""
        return self.backbone.encode(self.prompts[:64]).sequence.flatten(1).norm(dim=1).mean().item()

    @functools.cached_property
    def scale(self) -> float:
        """||c_org|| on the tuning prompts, to three digits, in units of which grids are given."""
        return float(f"{self.tuning.norm():.3g}")

    def judge(self, draw: Draw, pairs: int | None = None, *, distance: bool = False) -> dict:
        """What every judge says of the first `pairs` pairs, by name, and the seconds of sampling.

        The oracle says what is right, `mistakes.KINDS`, and a letter for the failure. distance: the
        Frechet distance to true pictures too, as "FID". Seconds do not include judging.
        """
        result: dict = {}
        spent: list[tuple[float, float, int]] = []
        pictures: list[Tensor] = []
        for batch in self.batches(pairs):
            began = time.perf_counter(), time.process_time()
            images = draw(batch).cpu()
            clock, processor = time.perf_counter() - began[0], time.process_time() - began[1]
            spent.append((clock, processor, len(batch.prompts)))
            for name, values in self.verdicts(batch, images).items():
                result.setdefault(name, []).extend(values)
            pictures += [images] if distance else []
        if distance:
            result["FID"] = round(self.frechet(pictures), 4)
        return result | _times(spent)

    def verdicts(self, batch: Batch, images: Tensor) -> dict[str, list]:
        """What every judge says of the pictures of a batch."""
        result = {}
        with torch.no_grad():
            for name, reward in self.judges.items():
                result[name] = score(reward, images, batch.prompts).tolist()
        verdicts = dk.shapes.judge(images, batch.prompts)
        result["oracle"] = [float(verdict.right) for verdict in verdicts]
        return result | shares(batch.prompts, verdicts)

    def timed(self, draw: Draw) -> dict[str, float]:
        """The seconds of drawing the first batch."""
        batch = next(self.batches())
        began = time.perf_counter(), time.process_time()
        draw(batch)
        clock, processor = time.perf_counter() - began[0], time.process_time() - began[1]
        return _times([(clock, processor, len(batch.prompts))])

    def frechet(self, pictures: list[Tensor]) -> float:
        """The Frechet distance to true pictures, in the features of the held-out reward."""
        drawn = features(pictures, self.heldout.image_features)
        return frechet_distance(drawn, self.true_pictures)

    @functools.cached_property
    def true_pictures(self) -> Tensor:
        """Features of true pictures of these prompts, 2048 at least."""
        return features(real_pictures(self.prompts), self.heldout.image_features)


@torch.no_grad()
def to_common_scale(reward: Reward, images: Tensor, prompts: Sequence[str]) -> Reward:
    """A sum of rewards, each divided by its standard deviation over these images.

    Terms of different scale then weigh as their weights say.
    """
    terms = []
    for weight, part in reward.terms():
        rows = [slice(n, n + 16) for n in range(0, len(images), 16)]
        values = torch.cat([score(part, images[own], prompts[own]) for own in rows])
        terms.append(weight / values.double().std().item() * part)
    return sum(terms)


def _times(spent: list[tuple[float, float, int]]) -> dict[str, float]:
    """Seconds in all, and a picture by the clock and of the processor, the median over batches.

    With one thread both agree on an idle core; other work on the machine lengthens the first alone.
    """
    clock = statistics.median(seconds / count for seconds, _, count in spent)
    processor = statistics.median(seconds / count for _, seconds, count in spent)
    return {"seconds": sum(seconds for seconds, _, _ in spent), CLOCK: clock, COST: processor}
