"""Fixtures: the shipped model and small random pipelines; nothing here touches a network."""

from __future__ import annotations

import functools
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import hypothesis
import ledger
import matplotlib
import pipelines
import pytest
import torch

import datekit as dk

# Here only: a variable of the environment would reach the kernels of the notebooks, whose figures
# would then be gone.
matplotlib.use("agg")
hypothesis.settings.register_profile("datekit", deadline=None, max_examples=25, derandomize=True)
hypothesis.settings.load_profile("datekit")


@pytest.fixture(scope="session")
def prompts():
    return ["a red circle left of a blue square", "a green star", "two yellow triangles"]


@pytest.fixture(scope="session", params=["shapes", "random-epsilon", "random-v_prediction"])
def backbone(request):
    """The shipped model and Stable-Diffusion-shaped random ones."""
    return _backbone(request.param)


@pytest.fixture(scope="session")
def shapes():
    return _backbone("shapes")


@pytest.fixture(scope="session")
def random_backbone():
    return _backbone("random-epsilon")


@pytest.fixture(scope="session", params=["gaussian", "gaussian-mixture"])
def model(request):
    """The closed-form models."""
    return dk.load(request.param)


@pytest.fixture(scope="session")
def target():
    return dk.rewards.load("target")


@pytest.fixture(scope="session")
def reward():
    return dk.rewards.load("shapes-clip")


@pytest.fixture(scope="session")
def brightness():
    return pipelines.Brightness()


@pytest.fixture
def float64_backbone():
    """A random pipeline in float64, for finite differences."""
    return dk.wrap(pipelines.stable_diffusion(seed=3).to(dtype=torch.float64))


@functools.cache
def _backbone(name: str):
    if name == "shapes":
        backbone = dk.load(name, device="cpu")
    else:
        backbone = dk.wrap(pipelines.stable_diffusion(name.removeprefix("random-")), name=name)
    backbone.pipe.set_progress_bar_config(disable=True)
    return backbone


def pytest_runtest_makereport(item, call):
    """A skip whose reason is not in the ledger is a failure."""
    ledger.check(call)


@pytest.fixture
def alone(monkeypatch):
    """No launcher's variables, and the number of threads as it was."""
    threads = torch.get_num_threads()
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    yield
    torch.set_num_threads(threads)
