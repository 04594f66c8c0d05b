"""Measures what was trained and writes it down: `training.json` and the model card."""

from __future__ import annotations

import json
import os
import platform
from datetime import date
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from datekit.shapes.captions import FAMILIES, caption, families, prompts
from datekit.shapes.negatives import garble
from datekit.shapes.oracle import judge
from datekit.shapes.renderer import render
from datekit.shapes.train import autoencoder, clip, denoiser
from datekit.shapes.train.card_template import TEMPLATE
from datekit.shapes.train.loop import write_atomically
from datekit.shapes.world import sample_scenes

DENOISING = ("denoiser", "refine", "noisy")
GUIDANCE = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.5)


def write(out: Path, *, device: str, budget: float, seed: int) -> None:
    """Reads the trained folders under `out` and writes `training.json` and `MODEL_CARD.md` there."""
    n = max(4, round(200 * budget))
    pipe = StableDiffusionPipeline.from_pretrained(out / "pipeline").to(device)
    pipe.set_progress_bar_config(disable=True)
    stages = {path.stem: json.loads(path.read_text()) for path in (out / "training").glob("*.json")}
    told = out / "PROVENANCE.txt"  # where the weights did not come from one uninterrupted run of the recipe
    facts = {
        "date": date.today().isoformat(),
        "seed": seed,
        "provenance": told.read_text().strip() if told.is_file() else "",
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}, {device}",
        "torch": torch.__version__,
        "parameters": parameters(pipe) | {name: count(clip.load(out / name)) for name in clip.VISION},
        "stages": {name: stages[name] for name in ("autoencoder", *DENOISING, *clip.VISION) if name in stages},
        "oracle": oracle_accuracy(10 * n),
        "autoencoder": autoencoder_accuracy(pipe.vae, 5 * n),
        "pipeline": pipeline_accuracy(pipe, json.loads((out / "pipeline" / "datekit.json").read_text()), n),
    } | {name: clip.accuracy(clip.load(out / name), 10 * n, seed=2) for name in clip.VISION}
    write_atomically(out / "training.json", lambda partial: partial.write_text(json.dumps(facts, indent=1) + "\n"))
    write_atomically(out / "MODEL_CARD.md", lambda partial: partial.write_text(text(facts)))


def count(module: torch.nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def parameters(pipe: StableDiffusionPipeline) -> dict[str, int]:
    """Number of parameters of each part of the pipeline."""
    return {name: count(getattr(pipe, name)) for name in ("unet", "text_encoder", "vae")}


def _captioned(n: int) -> tuple[torch.Tensor, list[str]]:
    """n rendered scenes, three quarters of the training distribution and the rest held-out pairs, with a true caption each."""
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
    spoilt = {"clean": images, "noise .03": images + 0.03 * noise, "noise .06": images + 0.06 * noise, "box blur 3 x 3": box}
    spoilt |= {f"blur {sigma}": clip.blur(images, torch.full((n,), sigma)) for sigma in (1.0, 1.5, 2.0)}
    return {"images": n} | {name: _right(views, texts) for name, views in spoilt.items()}


def autoencoder_accuracy(vae, n: int) -> dict[str, float]:
    """How well images survive the autoencoder, by the oracle and in decibels."""
    images, texts = _captioned(n)
    again = autoencoder.decode(vae, autoencoder.encode(vae, images))
    psnr = -10 * torch.log10(torch.mean((again - images) ** 2)).item()
    return {"images": n, "oracle": _right(again, texts), "psnr": round(psnr, 1)}


def pipeline_accuracy(pipe, defaults: dict, n: int) -> dict:
    """Oracle accuracy by family at the defaults on test prompts, and by guidance scale on tuning prompts."""
    at = {"num_steps": defaults["num_steps"], "seed": 1000}
    w = defaults["guidance_scale"]
    by_family = {family: denoiser.right(pipe, prompts(n=n, family=family, part="test"), guidance_scale=w, **at) for family in FAMILIES}
    seen = denoiser.right(pipe, prompts("train", n=n, part="test"), guidance_scale=w, **at)
    half = prompts(n=max(4, n // 2), part="tune")
    sweep = {str(scale): denoiser.right(pipe, half, guidance_scale=scale, num_steps=20) for scale in GUIDANCE}
    return {"images": n, "defaults": defaults, "families": by_family, "position, seen pairs": seen, "guidance, 20 steps": sweep}


def _table(head: tuple[str, ...], rows: list[tuple]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def text(facts: dict) -> str:
    """The model card."""
    stages, pipeline = facts["stages"], facts["pipeline"]
    curve = [(name, row) for name in DENOISING if name in stages for row in stages[name]["curve"]]
    clips = [(name, *(f"{facts[name][view]:.1%}" for view in ("sharp", "blur 1.5", "blur 3"))) for name in clip.VISION]
    return TEMPLATE.format(
        date=facts["date"],
        seed=facts["seed"],
        hardware=facts["hardware"],
        torch=facts["torch"],
        minutes=round(sum(stage["seconds"] for stage in stages.values()) / 60),
        parameters=_table(("part", "parameters"), [(name, f"{n:,}") for name, n in facts["parameters"].items()]),
        stages=_table(
            ("stage", "steps", "seconds", "final loss"),
            [(name, s["steps"], s["seconds"], s["curve"][-1]["loss"]) for name, s in stages.items()],
        ),
        curve=_table(
            ("stage", "step", "loss", "oracle"),
            [(name, row["step"], row["loss"], f"{row['oracle']:.0%}") for name, row in curve],
        ),
        word=garble.__kwdefaults__["word"],
        n=pipeline["images"],
        steps=pipeline["defaults"]["num_steps"],
        guidance=pipeline["defaults"]["guidance_scale"],
        families=_table(("family", "right"), [(name, f"{value:.1%}") for name, value in pipeline["families"].items()]),
        seen=f"{pipeline['position, seen pairs']:.1%}",
        sweep=_table(("guidance scale", "right"), [(w, f"{value:.0%}") for w, value in pipeline["guidance, 20 steps"].items()]),
        clips=_table(("model", "sharp", "blur 1.5 px", "blur 3 px"), clips),
        oracle=_table(("image", "right"), [(k, f"{v:.2%}") for k, v in facts["oracle"].items() if k != "images"]),
        oracle_images=facts["oracle"]["images"],
        vae_oracle=f"{facts['autoencoder']['oracle']:.1%}",
        vae_psnr=facts["autoencoder"]["psnr"],
        provenance=facts.get("provenance", ""),
    )
