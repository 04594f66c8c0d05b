"""The whole recipe: every weight that ships, from nothing, with one seed.

Two lanes of one thread each share the autoencoder: denoiser and its fine-tuning, and the two CLIPs.
"""

from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from datekit.shapes.train import autoencoder, card, clip, denoiser, export
from datekit.shapes.train.loop import Log, write_atomically

STEPS = {"autoencoder": 1600, "denoiser": 6400, "refine": 3500, "noisy": 1200, "clip": 3600, "clip-heldout": 3600}
STAGES = (*STEPS, "card")
LANES = (("denoiser", "refine", "noisy"), ("clip", "clip-heldout"))
PEAKS = {"denoiser": 1e-3, "refine": 7e-4, "noisy": 3e-4}  # things, relations, noisy captions
SMOKE = 0.0015  # budget that runs every stage in less than a minute


def train(
    out: str | Path,
    *,
    stages: tuple[str, ...] = STAGES,
    device: str = "auto",
    threads: int = 1,
    budget: float = 1.0,
    seed: int = 0,
) -> None:
    """Trains the stages into `out`, resuming from `out/checkpoints`, and exports what is complete.

    `budget` scales steps and data; stages that are left out must have been trained before. ValueError on unknown stages.
    """
    unknown = set(stages) - set(STAGES)
    if unknown:
        raise ValueError(f"unknown stage {sorted(unknown)}; there are {', '.join(STAGES)}")
    out = Path(out)
    job = dict(out=out, device=_device(device), threads=threads, budget=budget, seed=seed)
    if "autoencoder" in stages:
        run_stage("autoencoder", **job)
    lanes = [lane for lane in (tuple(s for s in lane if s in stages) for lane in LANES) if lane]
    if len(lanes) < 2 or job["device"] != "cpu":
        for lane in lanes:
            run_lane(lane, job)
    else:
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
            for done in [pool.submit(run_lane, lane, job) for lane in lanes]:
                done.result()
    if "card" in stages:
        card.write(out, device=job["device"], budget=budget, seed=seed)


def run_lane(stages: tuple[str, ...], job: dict) -> None:
    """Runs stages one after the other."""
    for stage in stages:
        run_stage(stage, **job)


def run_stage(stage: str, *, out: Path, device: str, threads: int, budget: float, seed: int) -> None:
    """Trains one stage, or picks it up where it stopped, and exports it."""
    torch.set_num_threads(threads)

    def fit_args(name: str) -> dict:
        steps = max(2, round(budget * STEPS[name]))
        path = out / "checkpoints" / f"{name}.pt"
        return {"path": path, "steps": steps, "seed": seed + STAGES.index(name), "device": device}

    vae, log = autoencoder.train(**fit_args("autoencoder"))
    data = {"scenes": max(64, round(budget * denoiser.SCENES)), "probes": max(4, round(100 * budget))}
    if stage in PEAKS:
        model = None
        for name in tuple(PEAKS)[: 1 + tuple(PEAKS).index(stage)]:
            options = {"start": model, "peak": PEAKS[name], "relations": name == "refine", "noisy": name == "noisy"}
            model, log = denoiser.train(vae=vae, **data, **options, **fit_args(name))
        export.pipeline(model, vae, out / "pipeline")
    if stage in clip.VISION:
        model, log = clip.train(stage, vae=vae, pool=max(64, round(budget * clip.POOL)), **fit_args(stage))
        clip.save(model, stage, out / stage)
    record(out, stage, log)


def record(out: Path, stage: str, log: Log) -> None:
    """Leaves steps, seconds and curve of a stage in `out/training/`."""
    entry = {"steps": log.steps, "seconds": round(log.seconds), "curve": log.curve}
    write_atomically(out / "training" / f"{stage}.json", lambda partial: partial.write_text(json.dumps(entry)))


def _device(name: str) -> str:
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"
