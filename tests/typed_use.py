"""The public names as a user's own type checker sees them: `make lint` reads this, nothing runs it.

Each `assert_type` says what a call of the README or of the course gives.
"""

from __future__ import annotations

from typing import assert_type

import torch
from PIL import Image
from torch import Tensor

import datekit as dk
from datekit.evaluation.evaluate import evaluate
from datekit.evaluation.generate import generate
from datekit.evaluation.prompts import Row, read_prompts
from datekit.evaluation.results import Evaluation


def sample(reward: dk.rewards.Reward) -> list[Image.Image]:
    backbone = dk.load("shapes", device="cpu", dtype=torch.float32)
    assert_type(backbone, dk.Backbone)
    date = dk.DATE(0.5 * reward + dk.rewards.load("shapes-clip"), rho=0.5, when=dk.every(5))
    sampler = dk.Sampler(backbone, date, num_steps=20, guidance_scale=2.0)
    state = sampler.init(["a red star"], seeds=[0])
    state, info = sampler.step(state)
    assert_type(state, dk.State)
    assert_type(info, dk.StepInfo)
    assert_type(sampler.predict(state), dk.Prediction)
    run = sampler.start("a red star", seeds=0)
    assert_type(run, dk.Run)
    assert_type(run.peek(), dk.RewardGradient)
    assert_type(run.fork(dk.Fixed()).finish(), dk.Run)
    assert_type(run.pixels, Tensor)
    for step in run:
        assert_type(step, dk.StepInfo)
    run.rewind(to=10)
    return run.images


def methods(reward: dk.rewards.Reward) -> list[dk.Method]:
    tokens = dk.softrepa.load("shapes")
    both = dk.SoftREPA(tokens) + dk.DATE(reward, rho=0.5)
    rivals = [dk.UniversalGuidance(reward), dk.LiDAR(reward)]
    return [both, dk.EBCA(), dk.RandomDirection(), *rivals, dk.Fixed()]


def look(run: dk.Run) -> None:
    assert_type(dk.guidance_term(run), dk.analysis.GuidanceTerm)
    assert_type(dk.analysis.taylor_error(run), dk.analysis.TaylorError)
    dk.plot.filmstrip(run)
    dk.plot.reward(run, run)
    dk.explore(run.sampler.backbone, dk.rewards.load("shapes-clip"))


def edit(backbone: dk.Backbone, image: Image.Image) -> dk.Run:
    inverted = dk.editing.ddpm_inversion(backbone, image, "a red star", num_steps=50)
    return inverted.edit("a blue star", method=dk.Fixed(), skip=0.3)


def judge(sampler: dk.Sampler) -> str:
    rows = read_prompts("shapes:2")
    assert_type(rows, list[Row])
    evaluation = evaluate([generate(sampler, rows, "pictures")])
    assert_type(evaluation, Evaluation)
    return evaluation.table()
