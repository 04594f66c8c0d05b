"""The whole recipe: every weight that ships, from nothing, with one seed.

First the autoencoder, then the guide; then, side by side on one thread each, the flow model and all the rest: the denoiser, which
takes over the text tower of the guide as the flow model does, the two small rewards beside CLIP's, the judge, and a cheap decoder.
"""

from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from studies.training import (
    aesthetic,
    autoencoder,
    card,
    clip,
    denoiser,
    export,
    flow,
    preference,
    tiny,
)
from studies.training.loop import Log, write_atomically

STEPS = {
    "autoencoder": 1600, "clip": 3600, "clip-heldout": 6000, "denoiser": 6000, "noisy": 700, "preference": 2400, "aesthetic": 3000,
    "flow": 10000, "flow-noisy": 1000, "tiny": 3000,
}  # fmt: skip
SEEDS = {  # plus the recipe's
    "autoencoder": 0, "denoiser": 1, "flow": 2, "noisy": 3, "clip": 4, "clip-heldout": 5, "flow-noisy": 6, "preference": 7, "aesthetic": 8,
    "tiny": 9,
}  # fmt: skip
STAGES = (*STEPS, "card")
PHASES = (  # of lanes
    (("autoencoder",),),
    (("clip",),),
    (
        ("flow", "flow-noisy"),
        ("denoiser", "noisy", "preference", "aesthetic", "clip-heldout", "tiny"),
    ),
)
PEAKS = {
    "denoiser": {"denoiser": 1e-3, "noisy": 6e-4},
    "flow": {"flow": 1e-3, "flow-noisy": 6e-4},
}  # learning rates
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


def run_stage(
    stage: str, *, out: Path, device: str, threads: int, budget: float, seed: int
) -> None:
    """Trains one stage, or picks it up where it stopped, and exports it."""
    torch.set_num_threads(threads)

    def fit_args(name: str) -> dict:
        steps = max(2, round(budget * STEPS[name]))
        path = out / "checkpoints" / f"{name}.pt"
        return {"path": path, "steps": steps, "seed": seed + SEEDS[name], "device": device}

    def guide(name: str):
        return clip.train(name, vae=vae, pool=max(64, round(budget * clip.POOL)), **fit_args(name))

    vae, log = autoencoder.train(**fit_args("autoencoder"))
    for family, module in (("denoiser", denoiser), ("flow", flow)):
        if stage in PEAKS[family]:
            data = {
                "scenes": max(64, round(budget * denoiser.SCENES)),
                "probes": max(4, round(100 * budget)),
            }
            torch.manual_seed(seed)
            model = module.build(guide("clip")[0])
            for name, peak in list(PEAKS[family].items())[: 1 + list(PEAKS[family]).index(stage)]:
                noisy = name.endswith("noisy")
                model, log = module.train(
                    vae=vae, start=model, peak=peak, noisy=noisy, **data, **fit_args(name)
                )
            export.pipeline(family, module.pipeline(model, vae), out)
    if stage in clip.VISION:
        model, log = guide(stage)
        clip.save(model, stage, out / stage)
    if stage == "preference":
        model, log = preference.train(guide=guide("clip")[0], **fit_args(stage))
        preference.save(model, out / stage)
    if stage == "aesthetic":
        model, log = aesthetic.train(**fit_args(stage))
        aesthetic.save(model, out / stage)
    if stage == "tiny":
        model, log = tiny.train(vae=vae, **fit_args(stage))
        tiny.save(model, out / stage)
    record(out, stage, log)


def record(out: Path, stage: str, log: Log) -> None:
    """Leaves steps, seconds and curve of a stage in `out/training/`."""
    entry = {"steps": log.steps, "seconds": round(log.seconds), "curve": log.curve}
    write_atomically(
        out / "training" / f"{stage}.json", lambda partial: partial.write_text(json.dumps(entry))
    )


def _device(name: str) -> str:
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"
