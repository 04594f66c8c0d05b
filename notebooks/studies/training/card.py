"""Measures what was trained: `training.json`, and the model card that `card_text` makes of it."""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from datetime import date
from pathlib import Path

import numpy as np
import torch

from datekit import backbones
from datekit.rewards.shapes_scores import PreferenceScore, StyleScore
from datekit.shapes.captions import FAMILIES, caption, families, prompts
from datekit.shapes.oracle import UNKNOWN, judge
from datekit.shapes.renderer import render
from datekit.shapes.world import sample_scenes
from studies.mistakes import FAILURES, failure
from studies.training import (
    aesthetic,
    autoencoder,
    clip,
    denoiser,
    export,
    preference,
    robust,
    tiny,
)
from studies.training.card_text import DENOISING, MODELS, text
from studies.training.loop import write_atomically

SMALL = ("preference", "aesthetic")  # rewards
CLIPS = ("clip", "clip-plain", "clip-heldout")  # folders
GUIDANCE = (1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 14.0)


def write(out: Path, *, device: str, budget: float, seed: int) -> None:
    """Reads the trained folders under `out`; writes `training.json` and `MODEL_CARD.md` there."""
    n = max(4, round(100 * budget))
    stages = {path.stem: json.loads(path.read_text()) for path in (out / "training").glob("*.json")}
    folders = {model: out / export.FOLDERS[model] for model in MODELS}
    pipes = {
        model: backbones.load(folder, device=device).pipe
        for model, folder in folders.items()
        if folder.is_dir()
    }
    clips = {name: clip.load(out / name) for name in CLIPS if (out / name).is_dir()}
    vae = pipes["denoiser"].vae
    cheap = {"tiny": tiny.load(out / "tiny")} if (out / "tiny").is_dir() else {}
    facts = (
        {
            "date": date.today().isoformat(),
            "seed": seed,
            "hardware": f"{os.cpu_count()} cores, {platform.machine()}, {device}",
            "torch": torch.__version__,
            "parameters": {
                name: count(part)
                for name, part in (*_networks(pipes), *clips.items(), *cheap.items())
            },
            "stages": {
                name: stages[name]
                for name in ("autoencoder", *clip.VISION, *SMALL, "tiny", *DENOISING, "robust")
                if name in stages
            },
            "oracle": oracle_accuracy(20 * n),
            "autoencoder": autoencoder_accuracy(vae, 10 * n),
            "tiny": tiny.accuracy(cheap["tiny"], vae, 10 * n, seed=2) if cheap else None,
            "models": {
                model: pipeline_accuracy(pipe, export.DEFAULTS[model], n)
                for model, pipe in pipes.items()
            },
        }
        | {name: clip.accuracy(model, 20 * n, seed=2) for name, model in clips.items()}
        | {"robustness": {name: robust.accuracy(clips[name], 10 * n, seed=2) for name in clips}}
        | small_accuracy(out, 10 * n)
    )
    write_atomically(
        out / "training.json",
        lambda partial: partial.write_text(json.dumps(facts, indent=1) + "\n"),
    )
    write_atomically(out / "MODEL_CARD.md", lambda partial: partial.write_text(text(facts)))


def small_accuracy(out: Path, n: int) -> dict[str, dict[str, float]]:
    """How good the small rewards are.

    How often the preference is for the better picture, and how the aesthetic score correlates with
    the look that it rates.
    """
    found = {}
    if (out / "preference").is_dir():
        found["preference"] = preference.accuracy(
            PreferenceScore(out / "preference", device="cpu"), n, seed=2
        )
    if (out / "aesthetic").is_dir():
        look = StyleScore(out / "aesthetic", device="cpu")
        found["aesthetic"] = aesthetic.accuracy(
            lambda images: look(images, [""] * len(images)), n, seed=2
        )
    return {
        name: {key: round(value, 4) for key, value in row.items()} for name, row in found.items()
    }


def _networks(pipes: dict):
    parts = {
        "unet": "U-Net",
        "transformer": "MMDiT",
        "text_encoder": "text encoder",
        "text_encoder_2": "second text encoder",
    }
    yield "autoencoder", pipes["denoiser"].vae
    for model, pipe in pipes.items():
        for name, label in parts.items():
            if getattr(pipe, name, None) is not None:
                yield f"{label} of {export.DEFAULTS[model]['name']}", getattr(pipe, name)


def count(module: torch.nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def _captioned(n: int) -> tuple[torch.Tensor, list[str]]:
    """n rendered scenes with a true caption each.

    Three quarters are of the training distribution, the rest are held-out pairs.
    """
    scenes = sample_scenes(n - n // 4, 101) + sample_scenes(n // 4, 102, "heldout")
    rng = np.random.default_rng(103)
    return render(scenes), [caption(scene, rng.choice(families(scene)), rng) for scene in scenes]


def _right(images: torch.Tensor, texts: list[str]) -> float:
    return round(float(np.mean([verdict.right for verdict in judge(images, texts)])), 4)


def oracle_accuracy(n: int) -> dict[str, float]:
    """Share of true captions that the oracle finds true, on clean and on spoilt renders."""
    images, texts = _captioned(n)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    box = torch.nn.functional.avg_pool2d(images, 3, 1, 1, count_include_pad=False)
    spoilt = {
        "clean": images,
        "noise .03": images + 0.03 * noise,
        "noise .06": images + 0.06 * noise,
        "box blur 3 x 3": box,
    }
    spoilt |= {
        f"blur {sigma}": clip.blur(images, torch.full((n,), sigma)) for sigma in (1.0, 1.5, 2.0)
    }
    return {"images": n} | {name: _right(views, texts) for name, views in spoilt.items()}


def autoencoder_accuracy(vae, n: int) -> dict[str, float]:
    """How well images survive the autoencoder, by the oracle and in decibels."""
    images, texts = _captioned(n)
    again = autoencoder.decode(vae, autoencoder.encode(vae, images))
    return {
        "images": n,
        "oracle": _right(again, texts),
        "psnr": autoencoder.decibels(again - images),
    }


def pipeline_accuracy(pipe, defaults: dict, n: int) -> dict:
    """Oracle accuracy by family, on test prompts, and by guidance scale, on tuning prompts."""
    silent = {"max_sequence_length": defaults["text_length"]} if "text_length" in defaults else {}
    at = {"num_steps": defaults["num_steps"], "seed": 1000} | silent
    w = defaults["guidance_scale"]
    by_family = {
        family: denoiser.right(
            pipe, prompts(n=n, family=family, part="test"), guidance_scale=w, **at
        )
        for family in FAMILIES
    }
    seen = denoiser.right(pipe, prompts("train", n=n, part="test"), guidance_scale=w, **at)
    tuning = prompts(n=max(4, 2 * n), part="tune")
    sweep = {
        str(scale): denoiser.right(pipe, tuning, guidance_scale=scale, num_steps=20, **silent)
        for scale in GUIDANCE
    }
    return {
        "images": n,
        "defaults": defaults,
        "families": by_family,
        "position, seen pairs": seen,
        "guidance, 20 steps": sweep,
        "mistakes": mistakes(
            pipe, prompts("heldout", 3 * n, seed=1, part="test"), guidance_scale=w, **at
        ),
    }


def mistakes(pipe, texts: list[str], **options) -> dict:
    """How many pictures there are, how many are wrong, and how many of these by `FAILURES`.

    unclear: how many of the wrong ones hold a thing of no known shape or colour.
    """
    judged = zip(texts, judge(denoiser.draw_images(pipe, texts, **options), texts), strict=True)
    wrong = [(prompt, verdict) for prompt, verdict in judged if not verdict.right]
    first = Counter(failure(*pair) for pair in wrong)
    unclear = [any(UNKNOWN in thing.kind for thing in verdict.things) for _, verdict in wrong]
    return {
        "images": len(texts),
        "wrong": len(wrong),
        "unclear": sum(unclear),
        "kinds": {kind: first[kind] for kind in FAILURES},
    }
