"""Noise depends on (seed, step, purpose) and on nothing else."""

from __future__ import annotations

import itertools

import torch
from diffusers.utils.torch_utils import randn_tensor
from hypothesis import given
from hypothesis import strategies as st

from datekit import noise

SEEDS = st.integers(0, 2**63 - 1)
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16])


@given(st.lists(SEEDS, min_size=1, max_size=4), DTYPES)
def test_initial_noise_is_diffusers(seeds, dtype):
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    theirs = randn_tensor((len(seeds), 4, 8, 8), generator=generators, dtype=dtype)
    assert torch.equal(noise.initial(seeds, (4, 8, 8), dtype), theirs)


@given(SEEDS, SEEDS, st.integers(0, 999))
def test_step_noise_does_not_depend_on_the_batch(a, b, step):
    both = noise.normal([a, b], step, (5,), torch.float32)
    assert torch.equal(both[1:], noise.normal([b], step, (5,), torch.float32))


def test_purposes_steps_and_seeds_are_independent():
    draws = [noise.initial([0], (20_000,), torch.float64)[0]]
    for seed, step, purpose in itertools.product((0, 1), (0, 1), ("step", "direction")):
        draws.append(noise.normal([seed], step, (20_000,), torch.float64, purpose)[0])
    correlation = torch.corrcoef(torch.stack(draws)) - torch.eye(len(draws))
    assert correlation.abs().max() < 0.035  # five standard deviations of independent draws
