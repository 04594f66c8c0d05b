"""What a folder of pictures is judged by: the oracle by task family, and the Frechet distance.

A feature extractor is any function from images (B, 3, H, W) in [0, 1] to features (B, F).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..shapes.captions import parse
from ..shapes.oracle import judge
from ..shapes.renderer import render
from ..shapes.world import COLOURS, place
from .options import reward_named

INCEPTION = "inception"


@dataclass(frozen=True, eq=False)
class Statistics:
    """The mean mu (F,) and covariance sigma (F, F) of features of pictures, in float64.

    count: the number of pictures, None where a file does not say it. Raises ValueError where the
    shapes do not fit each other, a number is not finite, or sigma is not symmetric.
    """

    mu: np.ndarray
    sigma: np.ndarray
    count: int | None = None

    def __post_init__(self) -> None:
        if self.mu.ndim != 1 or self.sigma.shape != (len(self.mu), len(self.mu)):
            raise ValueError(
                "statistics are mu (F,) and sigma (F, F), "
                f"got the shapes {self.mu.shape} and {self.sigma.shape}"
            )
        if not (np.isfinite(self.mu).all() and np.isfinite(self.sigma).all()):
            raise ValueError("mu or sigma of the statistics holds NaN or infinity")
        rounding = 1e-6 * max(1e-12, np.abs(self.sigma).max())
        if not np.allclose(self.sigma, self.sigma.T, rtol=1e-4, atol=rounding):
            raise ValueError("sigma of the statistics is not symmetric, so it is no covariance")

    @staticmethod
    def of(features: np.ndarray) -> Statistics:
        """The statistics of features (N, F). Raises ValueError for fewer than two pictures."""
        features = np.asarray(features, dtype=np.float64)
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(f"statistics need features (N, F), N > 1, got {features.shape}")
        sigma = np.atleast_2d(np.cov(features, rowvar=False))
        return Statistics(features.mean(0), sigma, len(features))

    @staticmethod
    def read(path: str | Path) -> Statistics:
        """From the .npz that the field exchanges, with arrays `mu` and `sigma`."""
        try:
            with np.load(path) as file:
                count = int(file["count"]) if "count" in file else None
                mu, sigma = file["mu"].astype(np.float64), file["sigma"].astype(np.float64)
            return Statistics(mu, sigma, count)
        except FileNotFoundError:
            raise
        except Exception as error:
            raise ValueError(
                f"{path} holds no reference statistics, an .npz of arrays mu and sigma: {error}"
            ) from error

    def write(self, path: str | Path) -> None:
        """To such an .npz."""
        count = {} if self.count is None else {"count": self.count}
        np.savez(path, mu=self.mu, sigma=self.sigma, **count)


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """||mu_a - mu_b||^2 + tr(sigma_a + sigma_b - 2 (sigma_a sigma_b)^(1/2)), by torch-fidelity.

    Over features of Inception it is the FID of Heusel et al. 2017. Raises ValueError where the
    numbers of features differ, or the result is not finite.
    """
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    if a.mu.shape != b.mu.shape:
        raise ValueError(
            f"statistics of {len(a.mu)} and of {len(b.mu)} features cannot be compared; "
            "take the same feature extractor for both"
        )
    distance = fid_statistics_to_metric(vars(a), vars(b), verbose=False)[KEY_METRIC_FID]
    if not np.isfinite(distance):
        raise ValueError(f"the Frechet distance is {distance}")
    return distance


def extractor(
    name: str, *, device: str | None = None, weights: str | Path | None = None
) -> Callable[[Tensor], Tensor]:
    """A feature extractor by its name.

    name: "inception" for the layer pool3 (B, 2048) of the network that FID is defined with, or a
    CLIP reward for its unit image features. weights: a file of the Inception network in
    torch-fidelity's layout, which is downloaded otherwise. Raises ValueError for other names.
    """
    if name == INCEPTION:
        return _inception(device or ("cuda" if torch.cuda.is_available() else "cpu"), weights)
    reward = reward_named(name, device=device)
    if not hasattr(reward, "image_features"):
        raise ValueError(f"{name!r} has no image features; take inception or a CLIP score")
    return reward.image_features


def _inception(device: str, weights: str | Path | None) -> Callable[[Tensor], Tensor]:
    from torch_fidelity import FeatureExtractorInceptionV3

    weights = None if weights is None else str(weights)
    network = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=weights
    ).to(device)
    return lambda images: network((images.clamp(0, 1) * 255).round().byte().to(device))[0]


@torch.no_grad()
def features(batches: Iterable[Tensor], extract: Callable[[Tensor], Tensor]) -> np.ndarray:
    """The features (N, F) of batches of images."""
    return np.concatenate([extract(images).float().cpu().numpy() for images in batches])


def family(prompt: str) -> str:
    """The task family of a prompt of the shapes world, one of `shapes.FAMILIES`.

    Raises ValueError for a prompt that the world's grammar cannot read.
    """
    claim = parse(prompt)
    bare = all(want.colour is None for want in claim.wants)
    if claim.relation:
        return "position"
    if len(claim.wants) == 3:
        return "three"
    if len(claim.wants) == 2:
        return "two" if bare else "attribution"
    if claim.total > 1:
        return "counting"
    return "single" if bare else "colours"


def equal_weights(families: Sequence[str]) -> np.ndarray:
    """Weights (N,), 1 on average, that make the mean of N values the mean of the families' means.

    That is the overall score of GenEval.
    """
    names, numbers = np.unique(np.asarray(families), return_inverse=True)
    return len(families) / (len(names) * np.bincount(numbers))[numbers]


def oracle(images: Tensor, prompts: Sequence[str]) -> list[float]:
    """1 for each picture (B, 3, H, W) of which every claim of its prompt is true, else 0.

    It is exact, and knows the shapes world only.
    """
    return [float(verdict.right) for verdict in judge(images, prompts)]


def real_pictures(
    prompts: Sequence[str], *, least: int = 2048, seed: int = 0, batch: int = 256
) -> Iterator[Tensor]:
    """True pictures of prompts of the shapes world, up to `batch` at a time, (B, 3, 64, 64).

    Each prompt is drawn equally often, so that there are `least` pictures or a few more.
    """
    rng, scenes = np.random.default_rng(seed), []
    rounds = -(-least // len(prompts))
    for prompt in list(prompts) * rounds:
        claim, kinds = parse(prompt), []
        for want in claim.wants:
            for _ in range(want.count):
                kinds.append((want.colour or str(rng.choice(list(COLOURS))), want.shape))
        scenes.append(place(tuple(kinds), rng, claim.relation))
    for start in range(0, len(scenes), batch):
        yield render(scenes[start : start + batch])
