"""Numbers from numpy are numbers: they pass every check, and files hold them as Python's."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import datekit as dk
from datekit.errors import finite, whole
from datekit.evaluation.generate import generate
from datekit.evaluation.prompts import Row
from datekit.serialize import describe

PROMPTS = ["a red circle", "a blue square"]


@pytest.mark.parametrize("value", [3, np.int64(3), 0.5, np.float32(0.5), np.float16(0.5)])
def test_numbers_become_pythons(value):
    assert finite("x", value) == value
    assert type(finite("x", value)) in (int, float)
    if isinstance(value, (int, np.integer)):
        assert type(whole("n", value, 1)) is int


@pytest.mark.parametrize("value", [True, np.True_, "3", None, np.nan, np.inf, -np.float32(1)])
def test_what_is_no_number_from_0_up(value):
    for check, what in ((finite, "finite number"), (whole, "whole number")):
        with pytest.raises(ValueError, match=f"x must be a {what} from 0 up, got"):
            check("x", value, 0)
    for none in (0, 3.0, np.float32(3), torch.tensor(3)):
        with pytest.raises(ValueError, match="n must be a whole number from 1 up, got"):
            whole("n", none, 1)


def test_a_run_of_numpys_numbers_is_the_run_of_pythons(random_backbone, tmp_path):
    """From start to file: the same bits, and a file that loads."""
    ends = []
    for one, real in ((int, float), (np.int64, np.float32)):
        reward, when = real(2) * dk.rewards.load("target"), dk.every(one(2))
        method = dk.DATE(reward, rho=real(0.5), when=when, anchor="running", inner_steps=one(2))
        settings = {"num_steps": one(4), "guidance_scale": real(3), "micro_batch": one(1)}
        sampler = dk.Sampler(random_backbone, method, **settings)
        run = sampler.start(PROMPTS, seeds=[one(0), one(1)], height=one(64), width=one(64))
        run.step(one(3))
        json.dumps(describe(sampler))
        run.save(tmp_path / "run.pt")
        run = dk.Run.load(tmp_path / "run.pt", sampler).rewind(to=one(1))
        ends.append(run.finish().state.xt)
    assert torch.equal(*ends)
    for text, one in ((str, int), (np.str_, np.int64)):  # the second finds all that the first drew
        rows, size = [Row(text("a star"), one(3))], {"height": one(64), "width": one(64)}
        sampler = dk.Sampler(random_backbone, num_steps=one(2))
        generate(sampler, rows, tmp_path / "out", batch_size=one(1), **size)
    assert sampler.start("a star", seeds=torch.tensor([3])).seeds == (3,)
    assert dk.guidance_term(run.rewind(to=2), rho=np.float32(0.5)).rho == 0.5
