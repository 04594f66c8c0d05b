"""The shapes world's ImageReward, trained on which of two pictures raters prefer.

A picture is worth the number of true claims of the caption plus a little for being clean (`worth`),
and a rater prefers a to b with probability sigmoid(TASTE (worth_a - worth_b)): raters nearly agree
on what is wrong and waver on what is neater. The network starts from the guiding CLIP, as
ImageReward started from a BLIP, and so is related to it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from datekit.rewards.shapes_scores import HEAD, PreferenceHead
from datekit.shapes.captions import caption, families, parse
from datekit.shapes.renderer import render
from datekit.shapes.world import HELD_OUT, KINDS, Scene, held_out, place, sample_kinds
from studies.training import clip
from studies.training.loop import Draw, Log, fit, write_atomically
from studies.training.negatives import twin
from studies.training.robust import attack

BATCH = 32  # comparisons
PROBES = 192  # comparisons of each sort, while training
PEAK = 5e-4
TASTE = 3.0  # two pictures that differ by one claim: 95 % of the raters agree
CLEAN = 0.5  # what a clean picture is worth over a thoroughly spoilt one, in claims
RIVALS = {"twin": 0.35, "altered": 0.45, "moved": 0.1, "same": 0.1}  # what the other picture shows


@dataclass(frozen=True)
class Comparison:
    """A prompt, two scenes, and how spoilt each one's picture is, from 0 to 1."""

    prompt: str
    scenes: tuple[Scene, Scene]
    spoilt: tuple[float, float]

    @property
    def worth(self) -> tuple[float, float]:
        """True claims plus cleanliness, of both."""
        claims = parse(self.prompt)
        true = [sum(truth for _, truth in claims.check(scene.things)) for scene in self.scenes]
        return tuple(
            count + CLEAN * (1 - spoilt) for count, spoilt in zip(true, self.spoilt, strict=True)
        )


def compare(
    rng: np.random.Generator,
    kinds=sample_kinds,
    rivals: dict[str, float] = RIVALS,
    spoilt: float = 1.0,
) -> Comparison:
    """A comparison of a scene of `kinds(rng)`, captioned, with a rival of it, in random order.

    spoilt: by how much at most each picture is spoilt.
    """
    scene = place(kinds(rng), rng)
    options = families(scene)
    weights = np.array([3.0 if family == "position" else 1.0 for family in options])
    prompt = caption(scene, options[rng.choice(len(options), p=weights / weights.sum())], rng)
    scenes = [scene, _rival(scene, rng.choice(list(rivals), p=list(rivals.values())), rng)]
    order = rng.permutation(2)
    levels = spoilt * rng.random(2) * (rng.random(2) < 0.7)
    return Comparison(prompt, tuple(scenes[i] for i in order), tuple(levels.tolist()))


def _rival(scene: Scene, sort: str, rng: np.random.Generator) -> Scene:
    if sort == "twin":
        return twin(scene, rng)
    if sort == "altered":
        return _altered(scene, rng)
    return place(tuple(thing.kind for thing in scene.things), rng) if sort == "moved" else scene


def _altered(scene: Scene, rng: np.random.Generator) -> Scene:
    """One thing of another kind, left out, or one more; never a held-out pair."""
    kinds = [thing.kind for thing in scene.things]
    while True:
        edit, i, new = rng.integers(4), rng.integers(len(kinds)), KINDS[rng.integers(len(KINDS))]
        if edit == 0 and len(kinds) > 1:
            return replace(
                scene, things=tuple(thing for k, thing in enumerate(scene.things) if k != i)
            )
        changed = (
            [*kinds, new] if edit == 1 and len(kinds) < 3 else [*kinds[:i], new, *kinds[i + 1 :]]
        )
        if changed == kinds or any(held_out(a, b) for a, b in combinations(changed, 2)):
            continue
        if len(changed) > len(kinds):
            return place(tuple(changed), rng)
        colour, shape = new
        return replace(
            scene,
            things=tuple(
                replace(t, colour=colour, shape=shape) if k == i else t
                for k, t in enumerate(scene.things)
            ),
        )


def spoil(images: torch.Tensor, levels: torch.Tensor, draw: Draw) -> torch.Tensor:
    """Images (B, 3, H, W) blurred, faded and made noisy in proportion to levels (B,) in [0, 1]."""
    views = clip.blur(images, 3 * levels)
    level = levels[:, None, None, None]
    views = torch.lerp(views, images.mean((2, 3), keepdim=True).expand_as(views), 0.4 * level)
    return views + 0.06 * level * torch.randn(views.shape, generator=draw.torch)


def pictures(comparisons: Sequence[Comparison], draw: Draw) -> torch.Tensor:
    """All pictures of the comparisons, the first ones first, (2 B, 3, 64, 64)."""
    sides = [[(c.scenes[side], c.spoilt[side]) for c in comparisons] for side in (0, 1)]
    scenes, levels = zip(*(sides[0] + sides[1]), strict=True)
    return spoil(render(scenes), torch.tensor(levels, dtype=torch.float32), draw)


class Judge(torch.nn.Module):
    """A CLIP and a head on its features."""

    def __init__(self, towers: torch.nn.Module) -> None:
        super().__init__()
        self.towers = copy.deepcopy(towers)
        self.head = PreferenceHead(towers.text_projection.shape[1])

    def forward(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        """Scores (B,) of images in [0, 1] under prompts."""
        z = self.towers.encode_image(images.to(self.head.scale.device) * 2 - 1, normalize=True)
        return self.head(z, self.towers.encode_text(clip.tokens(prompts, z.device), normalize=True))


def train(path: Path, guide, *, steps: int, seed: int, device: str) -> tuple[Judge, Log]:
    """Trains on fresh comparisons by the Bradley-Terry loss, from the towers of `guide`.

    The pictures are attacked as those of the guide are. Returns the judge with its log.
    """
    torch.manual_seed(seed)
    judge = Judge(guide).requires_grad_(True).to(device)

    def loss(draw: Draw) -> tuple[torch.Tensor, dict]:
        judge.train()
        made = [compare(draw.numpy) for _ in range(BATCH)]
        worth = np.array([c.worth for c in made])
        first = draw.numpy.random(BATCH) < 1 / (
            1 + np.exp(-TASTE * (worth[:, 0] - worth[:, 1]))
        )  # what a rater says
        said = torch.from_numpy(first).float().to(device)
        prompts = [comparison.prompt for comparison in made] * 2

        def margins(images: torch.Tensor) -> torch.Tensor:
            h = judge(images, prompts)
            return h[:BATCH] - h[BATCH:]

        def disagreement(images: torch.Tensor) -> torch.Tensor:
            return F.binary_cross_entropy_with_logits(margins(images), said)

        margin = margins(attack(disagreement, pictures(made, draw), draw))
        agrees = ((margin > 0) == said.bool()).float().mean().item()
        return F.binary_cross_entropy_with_logits(margin, said), {"agrees": agrees}

    def probe() -> dict:
        return accuracy(judge.eval(), PROBES, seed=1)

    log = fit(
        judge,
        loss,
        steps=steps,
        peak=PEAK,
        path=path,
        seed=seed,
        probe=probe,
        probe_every=max(100, steps // 8),
    )
    return judge.eval().requires_grad_(False), log


@torch.no_grad()
def accuracy(judge: Callable, n: int, seed: int) -> dict[str, float]:
    """How often a reward scores the better picture higher, by what its rival shows.

    Pictures are clean unless said, and pairs of equal worth do not count. "cleaner": two pictures
    of one scene.
    """
    draw = Draw(seed, n)

    def pair(rng: np.random.Generator):
        return HELD_OUT[rng.integers(len(HELD_OUT))]

    cases = {
        "altered": dict(rivals={"altered": 1.0}, spoilt=0.0),
        "twin": dict(rivals={"twin": 1.0}, spoilt=0.0),
        "twin, held out": dict(rivals={"twin": 1.0}, spoilt=0.0, kinds=pair),
        "twin, spoilt": dict(rivals={"twin": 1.0}),
        "cleaner": dict(rivals={"same": 1.0}),
    }
    return {
        name: _share_right(judge, [compare(draw.numpy, **case) for _ in range(n)], draw)
        for name, case in cases.items()
    }


def _share_right(judge: Callable, comparisons: list[Comparison], draw: Draw) -> float:
    worth = np.array([c.worth for c in comparisons])
    h = judge(pictures(comparisons, draw), [c.prompt for c in comparisons] * 2).cpu().numpy()
    margin, better = h[: len(worth)] - h[len(worth) :], worth[:, 0] - worth[:, 1]
    counts = better != 0
    return float(((margin > 0) == (better > 0))[counts].mean()) if counts.any() else float("nan")


def save(judge: Judge, folder: Path) -> None:
    """A folder for `datekit.rewards.PreferenceScore`.

    It is an open_clip folder with the head beside it, in half precision.
    """
    from safetensors.torch import save_file

    clip.save(judge.towers, "clip", folder)
    head = {name: value.half() for name, value in judge.head.state_dict().items()}
    write_atomically(folder / HEAD, lambda partial: save_file(head, partial))
    facts = {"taste": TASTE, "clean": CLEAN, "rivals": RIVALS, "started from": "clip"}
    write_atomically(
        folder / "preference.json",
        lambda partial: partial.write_text(json.dumps(facts, indent=1) + "\n"),
    )
