"""What pictures are judged by: rewards by their words, the oracle, and the Frechet distance."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import rewards
from ..backbones import CLOSED_FORM, SHIPPED
from ..lazy import needs
from ..registry import entries, find
from ..rewards.base import Reward
from ..shapes.captions import parse
from ..shapes.oracle import judge
from ..shapes.renderer import render
from ..shapes.world import COLOURS, Scene, place

PUBLISHED = "CLIPScore:ViT-L-14,openai"  # the reward of the authors' code


def reward_by_name(text: str, *, device: str | None = None, **settings: Any) -> Reward:
    """The reward that a text names: a shipped one, or a class with its arguments.

    Examples are "shapes-clip", "ImageReward", "CLIPScore:ViT-g-14,laion2b_s12b_b42k" and
    "CLIPScore:ViT-L-14,openai,antialias=false". settings: given to the classes that take them.
    """
    if text.partition(":")[0] not in entries("reward"):
        return rewards.load(text, device=device)
    return object_by_name("reward", text, device=device, **settings)


def object_by_name(kind: str, text: str, **settings: Any) -> Any:
    """An object from the name of its class and arguments, in order or by name: "Taylor:0.25".

    settings: given to the classes that take them. Raises ValueError for what means nothing.
    """
    name, _, words = text.partition(":")
    cls = find(kind, name)
    parameters = inspect.signature(cls).parameters
    given = {option: value for option, value in settings.items() if option in parameters}
    try:
        for n, word in enumerate(words.split(",") if words else ()):
            option, _, value = word.rpartition("=")
            option = option or list(parameters)[n]
            given[option] = parse_word(option, str(parameters[option].annotation), value)
        return cls(**given)
    except (TypeError, LookupError) as error:
        raise ValueError(f"cannot make the {kind} {text!r}: {error!r}") from error


def parse_word(name: str, kind: str, word: str) -> Any:
    """What a word means for an option with an annotation such as "float | None"."""
    if "bool" in kind:
        if word not in ("true", "false"):
            raise ValueError(f"{name} takes true or false, got {word!r}")
        return word == "true"
    if not re.search(r"\b(int|float)\b", kind):
        return word
    try:
        return int(word) if re.fullmatch(r"[+-]?\d+", word) else float(word)
    except ValueError:
        raise ValueError(f"{name} takes a number, got {word!r}") from None


def default_reward(model: str | None) -> str:
    """The reward that guides a model when none is named: its world's own, or the authors' CLIP."""
    if model in SHIPPED:
        return "shapes-clip"
    return "target" if model in CLOSED_FORM else PUBLISHED


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """||mu_a - mu_b||^2 + tr(sigma_a + sigma_b - 2 (sigma_a sigma_b)^(1/2)), by torch-fidelity.

    mu, sigma: mean and covariance of features a (N, F) and b (M, F). Over features of Inception it
    is the FID of Heusel et al. 2017.
    """
    metric_fid = needs("torch_fidelity.metric_fid", "fid", "FID")
    if min(len(a), len(b)) < 2:
        raise ValueError(f"FID needs two pictures at least, got {min(len(a), len(b))}")
    statistics = [metric_fid.fid_features_to_statistics(x.double()) for x in (a, b)]
    distance = metric_fid.fid_statistics_to_metric(*statistics, verbose=False)
    return distance[metric_fid.KEY_METRIC_FID]


def inception(device: str | None = None) -> Callable[[Tensor], Tensor]:
    """The layer pool3 of the network that FID is defined with; torch-fidelity downloads it.

    A function from images (B, 3, H, W) in [0, 1] to features (B, 2048).
    """
    fidelity = needs("torch_fidelity", "fid", "FID")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    network = fidelity.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"]).to(device)
    return lambda images: network((images.clamp(0, 1) * 255).round().byte().to(device))[0]


@torch.no_grad()
def features(batches: Iterable[Tensor], extract: Callable[[Tensor], Tensor]) -> Tensor:
    """The features (N, F) of batches of images, on the CPU."""
    return torch.cat([extract(images).float().cpu() for images in batches])


def oracle(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """1 for each picture (B, 3, H, W) of which every claim of its prompt is true, else 0; (B,)."""
    return torch.tensor([float(verdict.right) for verdict in judge(images, prompts)])


def true_scenes(prompts: Sequence[str], rng: np.random.Generator) -> list[Scene]:
    """A scene of the shapes world that each prompt is true of; what it leaves open is drawn."""
    scenes = []
    for prompt in prompts:
        claim, kinds = parse(prompt), []
        for want in claim.wants:
            for _ in range(want.count):
                kinds.append((want.colour or str(rng.choice(list(COLOURS))), want.shape))
        scenes.append(place(tuple(kinds), rng, claim.relation))
    return scenes


def real_pictures(prompts: Sequence[str], *, least: int = 2048) -> Iterator[Tensor]:
    """True pictures of prompts of the shapes world, up to 256 at a time, (B, 3, 64, 64).

    Each prompt is drawn equally often, so that there are `least` pictures or a few more.
    """
    rounds = -(-least // len(prompts))
    scenes = true_scenes(list(prompts) * rounds, np.random.default_rng(0))
    for start in range(0, len(scenes), 256):
        yield render(scenes[start : start + 256])
