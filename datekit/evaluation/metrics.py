"""What a folder of pictures is judged by: rewards, the exact oracle per task family, and the Frechet distance (FID).

A feature extractor is any function from images (B, 3, H, W) in [0, 1] to features (B, F).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from ..rewards.clip_towers import TowerReward
from .options import reward_named

INCEPTION = "inception"


@dataclass(frozen=True, eq=False)
class Statistics:
    """Mean mu (F,) and covariance sigma (F, F), float64, of the features of `count` pictures (None where a file does not say)."""

    mu: np.ndarray
    sigma: np.ndarray
    count: int | None = None

    @staticmethod
    def of(features: np.ndarray) -> Statistics:
        """The statistics of features (N, F). Raises ValueError for fewer than two rows or NaN."""
        features = np.asarray(features, dtype=np.float64)
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(
                f"statistics need features (N, F) of at least two pictures, got {features.shape}"
            )
        return Statistics(
            features.mean(0),
            np.cov(features, rowvar=False).reshape(features.shape[1], -1),
            len(features),
        ).checked("features")

    @staticmethod
    def read(path: str | Path) -> Statistics:
        """From the .npz that the field exchanges, arrays `mu` and `sigma`. Raises ValueError for a file without them."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"no reference statistics at {path}")
        try:
            file = np.load(path)
        except (ValueError, BadZipFile):
            raise ValueError(f"{path} is no .npz of arrays mu and sigma") from None
        if not hasattr(file, "files"):
            raise ValueError(
                f"{path} holds one array; reference statistics are an .npz of arrays 'mu' and 'sigma'"
            )
        with file:
            if not {"mu", "sigma"} <= set(file.files):
                raise ValueError(
                    f"{path} holds {', '.join(file.files) or 'nothing'}; reference statistics are arrays 'mu' and 'sigma'"
                )
            count = int(file["count"]) if "count" in file.files else None
            return Statistics(
                file["mu"].astype(np.float64), file["sigma"].astype(np.float64), count
            ).checked(path)

    def write(self, path: str | Path) -> None:
        """To such an .npz."""
        np.savez(
            path,
            mu=self.mu,
            sigma=self.sigma,
            **({} if self.count is None else {"count": self.count}),
        )

    def checked(self, where: object) -> Statistics:
        """Itself, unless the shapes do not fit, a number is not finite, or sigma is not symmetric: then ValueError."""
        if self.mu.ndim != 1 or self.sigma.shape != (len(self.mu),) * 2:
            raise ValueError(
                f"{where}: mu must be (F,) and sigma (F, F), got {self.mu.shape} and {self.sigma.shape}"
            )
        if not (np.isfinite(self.mu).all() and np.isfinite(self.sigma).all()):
            raise ValueError(f"{where}: mu or sigma holds NaN or infinity")
        if not np.allclose(
            self.sigma, self.sigma.T, rtol=1e-4, atol=1e-6 * max(1e-12, np.abs(self.sigma).max())
        ):
            raise ValueError(f"{where}: sigma is not symmetric, so it is no covariance")
        return self


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """||mu_a - mu_b||^2 + tr(sigma_a + sigma_b - 2 (sigma_a sigma_b)^(1/2)) (Heusel et al. 2017), by torch-fidelity.

    Raises ValueError where the numbers of features differ, or the result is not finite.
    """
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    if a.mu.shape != b.mu.shape:
        raise ValueError(
            f"statistics of {len(a.mu)} and of {len(b.mu)} features cannot be compared; take the same feature extractor for both"
        )
    value = fid_statistics_to_metric(vars(a), vars(b), verbose=False)[KEY_METRIC_FID]
    if not np.isfinite(value):
        raise ValueError(f"the Frechet distance is {value}")
    return value


def extractor(
    name: str, *, device: str | None = None, weights: str | Path | None = None
) -> Callable[[Tensor], Tensor]:
    """Features by name: "inception", pool3 of the network that FID is defined with, (B, 2048), or a CLIP reward, its unit image
    features. weights: a local file of the Inception network in torch-fidelity's layout, fetched otherwise.
    """
    if name == INCEPTION:
        return _inception(device, weights)
    reward = reward_named(name, device=device)
    if not isinstance(reward, TowerReward):
        raise ValueError(f"{name!r} has no image features; take inception or a CLIP score")
    return reward.image_features


def _inception(device: str | None, weights: str | Path | None) -> Callable[[Tensor], Tensor]:
    from torch_fidelity import FeatureExtractorInceptionV3

    network = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=weights and str(weights)
    )
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    network = network.to(place)
    return lambda images: network((images.clamp(0, 1) * 255).round().byte().to(place))[0]


@torch.no_grad()
def features(batches: Iterable[Tensor], extract: Callable[[Tensor], Tensor]) -> np.ndarray:
    """The features (N, F) of batches of images."""
    return np.concatenate([extract(images).float().cpu().numpy() for images in batches])


def family(prompt: str) -> str:
    """The task family of a prompt of the shapes world, one of `captions.FAMILIES`; ValueError for a prompt that it cannot read."""
    from ..shapes.captions import parse

    claim = parse(prompt)
    bare = all(want.colour is None for want in claim.wants)
    if claim.relation:
        return "position"
    if len(claim.wants) == 1:
        return "counting" if claim.total > 1 else "single" if bare else "colours"
    return "three" if len(claim.wants) == 3 else "two" if bare else "attribution"


def equal_weights(families: Sequence[str]) -> np.ndarray:
    """Weights (N,), 1 on average, under which the mean over pictures is the mean of the families' means (GenEval's overall score)."""
    names, numbers = np.unique(np.asarray(families), return_inverse=True)
    return len(families) / (len(names) * np.bincount(numbers))[numbers]


def oracle(images: Tensor, prompts: Sequence[str]) -> list[float]:
    """1 for each picture (B, 3, H, W) of which every claim of its prompt is true, else 0; exact, in the shapes world only."""
    from ..shapes.oracle import judge

    return [float(verdict.right) for verdict in judge(images, prompts)]


def real_pictures(
    prompts: Sequence[str], *, least: int = 2048, seed: int = 0, batch: int = 256
) -> Iterable[Tensor]:
    """True pictures of prompts of the shapes world, (B, 3, 64, 64) at a time: each prompt equally often, `least` in all at least."""
    from ..shapes.captions import parse
    from ..shapes.renderer import render
    from ..shapes.world import COLOURS, place

    rng, scenes = np.random.default_rng(seed), []
    for prompt in list(prompts) * -(-least // len(prompts)):
        claim = parse(prompt)
        kinds = [
            (want.colour or str(rng.choice(list(COLOURS))), want.shape)
            for want in claim.wants
            for _ in range(want.count)
        ]
        scenes.append(place(tuple(kinds), rng, claim.relation))
    for start in range(0, len(scenes), batch):
        yield render(scenes[start : start + batch])
