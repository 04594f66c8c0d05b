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

STEPS = {"autoencoder": 1600, "denoiser": 6400, "refine": 2200, "noisy": 700, "clip": 3600, "clip-heldout": 3600}
STAGES = (*STEPS, "card")
PHASES = ((("autoencoder",),), (("denoiser",), ("clip",)), (("refine", "noisy"), ("clip-heldout",)))  # of lanes
PEAKS = {"denoiser": 1e-3, "refine": 1e-3, "noisy": 6e-4}  # things, relations, noisy captions
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
    for phase in PHASES:
        lanes = [lane for lane in (tuple(s for s in lane if s in stages) for lane in phase) if lane]
        run_lanes(lanes, job)
    if "card" in stages:
        card.write(out, device=job["device"], budget=budget, seed=seed)


def run_lanes(lanes: list[tuple[str, ...]], job: dict) -> None:
    """Runs lanes side by side on a CPU, one after the other elsewhere."""
    if len(lanes) < 2 or job["device"] != "cpu":
        for lane in lanes:
            run_lane(lane, job)
        return
    with ProcessPoolExecutor(len(lanes), mp_context=multiprocessing.get_context("spawn")) as pool:
        for done in [pool.submit(run_lane, lane, job) for lane in lanes]:
            done.result()


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

    def guide(name: str):
        return clip.train(name, vae=vae, pool=max(64, round(budget * clip.POOL)), **fit_args(name))

    vae, log = autoencoder.train(**fit_args("autoencoder"))
    if stage in PEAKS:
        model = None
        data = {"scenes": max(64, round(budget * denoiser.SCENES)), "probes": max(4, round(100 * budget))}
        for name in tuple(PEAKS)[: 1 + tuple(PEAKS).index(stage)]:
            if name == "refine":
                model.text = denoiser.text_encoder_of(guide("clip")[0])
            options = {"start": model, "peak": PEAKS[name], "layout": name != "denoiser", "noisy": name == "noisy"}
            model, log = denoiser.train(vae=vae, **data, **options, **fit_args(name))
        export.pipeline(model, vae, out / "pipeline")
    if stage in clip.VISION:
        model, log = guide(stage)
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
