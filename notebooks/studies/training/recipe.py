"""The whole recipe: every weight that ships, from nothing, with one seed.

First the autoencoder, then a CLIP. Then, side by side on one thread each, the flow model and the
denoiser, which both take over its text tower, with the judge, a cheap decoder and the aesthetic
score. Last the guide, which is that CLIP made robust on what both models draw, and the preference,
which starts from it.

A new stage is one function here, with a row in `STEPS`, `SEEDS`, `RUNS` and `PHASES`.
"""

from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

import datekit as dk
from datekit.errors import unknown
from studies.training import (
    aesthetic,
    autoencoder,
    card,
    clip,
    denoiser,
    export,
    flow,
    preference,
    robust,
    tiny,
)
from studies.training.loop import Log, write_atomically
from studies.training.negatives import GARBLING

STEPS = {
    "autoencoder": 1600,
    "clip": 3600,
    "clip-heldout": 6000,
    "denoiser": 6000,
    "noisy": 700,
    "noisier": 500,
    "aesthetic": 3000,
    "flow": 10000,
    "flow-noisy": 1000,
    "flow-noisier": 700,
    "tiny": 3000,
    "robust": 1200,
    "preference": 2400,
}
SEEDS = {  # plus the recipe's
    "autoencoder": 0,
    "denoiser": 1,
    "flow": 2,
    "noisy": 3,
    "clip": 4,
    "clip-heldout": 5,
    "flow-noisy": 6,
    "preference": 7,
    "aesthetic": 8,
    "tiny": 9,
    "robust": 10,
    "noisier": 11,
    "flow-noisier": 12,
}
STAGES = (*STEPS, "card")
PHASES = (  # in turn; the lanes of a phase run side by side, the stages of a lane in turn
    (("autoencoder",),),
    (("clip",),),
    (
        ("flow", "flow-noisy", "flow-noisier"),
        ("denoiser", "noisy", "noisier", "aesthetic", "clip-heldout", "tiny"),
    ),
    (("robust", "preference"),),
)
PEAKS = {  # learning rates
    "denoiser": 1e-3,
    "noisy": 6e-4,
    "noisier": 4e-4,
    "flow": 1e-3,
    "flow-noisy": 6e-4,
    "flow-noisier": 4e-4,
}
FOLDERS = {"clip": "clip-plain", "clip-heldout": "clip-heldout", "robust": "clip"}
SMOKE = 0.0003  # the budget at which a stage takes a few steps


@dataclass(frozen=True)
class Job:
    """Where and how to train.

    budget: scales steps and data; seed: is added to that of each stage.
    """

    out: Path
    device: str = "cpu"
    threads: int = 1
    budget: float = 1.0
    seed: int = 0

    def scaled(self, count: int, least: int) -> int:
        """A number of steps or scenes at this budget."""
        return max(least, round(self.budget * count))

    def claim(self) -> None:
        """Note seed and budget in the folder. Raises ValueError where it was begun with others."""
        path, own = self.out / "job.json", {"seed": self.seed, "budget": self.budget}
        if path.is_file() and (begun := json.loads(path.read_text())) != own:
            raise ValueError(f"{self.out} was begun with {begun}, not {own}; take another folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(own))

    def options(self, stage: str) -> dict:
        """What every stage's `train` takes; it resumes from its checkpoint, or is done at once."""
        return {
            "path": self.out / "checkpoints" / f"{stage}.pt",
            "steps": self.scaled(STEPS[stage], 2),
            "seed": self.seed + SEEDS[stage],
            "device": self.device,
        }


def train(
    out: str | Path,
    *,
    stages: tuple[str, ...] = STAGES,
    device: str = "auto",
    threads: int = 1,
    budget: float = 1.0,
    seed: int = 0,
) -> None:
    """Train the stages into `out`, resuming from `out/checkpoints`, and export what is complete.

    budget: scales steps and data. Stages that are left out must have been trained before. Raises
    ValueError for an unknown stage, or for a folder of another seed or budget.
    """
    for stage in stages:
        if stage not in STAGES:
            raise unknown("stage", stage, STAGES)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    job = Job(Path(out), device, threads, budget, seed)
    job.claim()
    for phase in PHASES:
        lanes = [tuple(stage for stage in lane if stage in stages) for lane in phase]
        run_lanes([lane for lane in lanes if lane], job)
    if "card" in stages:
        card.write(job.out, device=device, budget=budget, seed=seed)


def run_lanes(lanes: list[tuple[str, ...]], job: Job) -> None:
    """Run lanes side by side on a CPU, and one after the other elsewhere."""
    if len(lanes) < 2 or job.device != "cpu":
        for lane in lanes:
            run_lane(lane, job)
        return
    with ProcessPoolExecutor(len(lanes), mp_context=multiprocessing.get_context("spawn")) as pool:
        for lane in [pool.submit(run_lane, lane, job) for lane in lanes]:
            lane.result()


def run_lane(stages: tuple[str, ...], job: Job) -> None:
    """Run stages one after the other."""
    for stage in stages:
        run_stage(stage, job)


def run_stage(stage: str, job: Job) -> None:
    """Train one stage, or pick it up where it stopped, and export it.

    Its steps, seconds and curve are left in `out/training/`, for the model card.
    """
    if stage == "card":
        card.write(job.out, device=job.device, budget=job.budget, seed=job.seed)
        return
    torch.set_num_threads(job.threads)
    log = RUNS[stage](stage, job)
    entry = {"steps": log.steps, "seconds": round(log.seconds), "curve": log.curve}
    path = job.out / "training" / f"{stage}.json"
    write_atomically(path, lambda partial: partial.write_text(json.dumps(entry)))


def trained_vae(job: Job):
    """The autoencoder, with its log."""
    return autoencoder.train(**job.options("autoencoder"))


def trained_clip(name: str, job: Job):
    """The CLIP that the guide is made from, or the judge, with its log."""
    vae, _ = trained_vae(job)
    return clip.train(name, vae=vae, pool=job.scaled(clip.POOL, 32), **job.options(name))


def trained_guide(job: Job):
    """The robust guide, with its log; it learns from what the trained pipelines draw."""
    plain, _ = trained_clip("clip", job)
    folders = [job.out / folder for folder in export.FOLDERS.values()]
    models = [dk.load(folder, device=job.device) for folder in folders]
    pool = job.scaled(robust.X0BARS, 16)
    return robust.train(guide=plain, backbones=models, pool=pool, **job.options("robust"))


def run_autoencoder(stage: str, job: Job) -> Log:
    """The autoencoder ships as a part of the pipelines."""
    return trained_vae(job)[1]


def run_clip(stage: str, job: Job) -> Log:
    """The CLIP that the guide is made from, or the judge."""
    model, log = trained_clip(stage, job)
    clip.save(model, stage, job.out / FOLDERS[stage])
    return log


def run_robust(stage: str, job: Job) -> Log:
    """The guide."""
    model, log = trained_guide(job)
    clip.save(model, "clip", job.out / FOLDERS[stage])
    return log


def run_denoiser(stage: str, job: Job) -> Log:
    """The U-Net, and its fine-tuning on noisy captions."""
    return _run_diffusion("denoiser", denoiser, ("denoiser", "noisy", "noisier"), stage, job)


def run_flow(stage: str, job: Job) -> Log:
    """The joint transformer, and its fine-tuning on noisy captions."""
    return _run_diffusion("flow", flow, ("flow", "flow-noisy", "flow-noisier"), stage, job)


def run_preference(stage: str, job: Job) -> Log:
    """The reward that says which picture is preferred; it starts from the guide."""
    guide, _ = trained_guide(job)
    model, log = preference.train(guide=guide, **job.options(stage))
    preference.save(model, job.out / stage)
    return log


def run_aesthetic(stage: str, job: Job) -> Log:
    """The reward that rates a look."""
    model, log = aesthetic.train(**job.options(stage))
    aesthetic.save(model, job.out / stage)
    return log


def run_tiny(stage: str, job: Job) -> Log:
    """The cheap decoder."""
    model, log = tiny.train(vae=trained_vae(job)[0], **job.options(stage))
    tiny.save(model, job.out / stage)
    return log


def _run_diffusion(family: str, module, stages: tuple[str, ...], stage: str, job: Job) -> Log:
    """A diffusion model up to `stage`: each stage goes on from the weights of the one before."""
    vae, _ = trained_vae(job)
    guide, _ = trained_clip("clip", job)
    torch.manual_seed(job.seed)
    model = module.build(guide)
    for name in stages[: stages.index(stage) + 1]:
        model, log = module.train(
            vae=vae,
            start=model,
            peak=PEAKS[name],
            garbling=GARBLING.get(name.removeprefix("flow-")),
            scenes=job.scaled(denoiser.SCENES, 32),
            probes=job.scaled(100, 1),
            **job.options(name),
        )
    export.pipeline(family, module.pipeline(model, vae), job.out)
    return log


RUNS = {
    "autoencoder": run_autoencoder,
    "clip": run_clip,
    "clip-heldout": run_clip,
    "denoiser": run_denoiser,
    "noisy": run_denoiser,
    "noisier": run_denoiser,
    "flow": run_flow,
    "flow-noisy": run_flow,
    "flow-noisier": run_flow,
    "preference": run_preference,
    "aesthetic": run_aesthetic,
    "tiny": run_tiny,
    "robust": run_robust,
}
