"""The notebooks' switch to a large model, where there is none:

a sentence, and the shipped model. Nothing here reaches a network.
"""

from __future__ import annotations

import functools
from pathlib import Path

import jupytext
import pytest
import torch
from studies.large import load_large

import datekit as dk

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "12_other_backbones.py"


@pytest.fixture
def gpu(monkeypatch):
    """A GPU that torch believes in; what is loaded without a word about the device goes to the CPU
    all the same.
    """
    for module in (dk, dk.rewards):
        monkeypatch.setattr(module, "load", functools.partial(module.load, device="cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert dk.load("shapes").device.type == "cpu"


def switched(model: str) -> dict:
    """What stands after the notebook's own cells, the imports and the one with the switch, for this
    model.
    """
    first, switch = [
        cell.source for cell in jupytext.read(NOTEBOOK).cells if cell.cell_type == "code"
    ][:2]
    assert "load_large(" in switch
    assert first.count('MODEL = "shapes"') == 1
    found: dict = {}
    exec(first.replace('MODEL = "shapes"', f"MODEL = {model!r}") + "\n" + switch, found)
    return found


def is_small(found: dict) -> bool:
    return (
        [b.name for b in found["backbones"]] == list(dk.backbones.SHIPPED)
        and found["reward"].name == "shapes-clip"
        and found["RHO"] is None
    )


@pytest.mark.parametrize("model", ["SD v1.5", "SDXL", "PixArt-alpha", "SD3", "FLUX"])
def test_without_weights_the_notebook_goes_on_with_the_shipped_models(gpu, model, capsys):
    """The hub is out of reach: diffusers' own error, in a sentence."""
    assert is_small(switched(model))
    said = capsys.readouterr().out.splitlines()[0]
    assert said.startswith(f"not {model} but what ships with the package: ")
    assert "is no folder here, and as a hub id it did not load" in said


def test_without_the_rewards_weights_too(gpu, monkeypatch, capsys, random_backbone):
    """The model is there, the CLIP is not: open_clip's own error."""
    load = dk.load
    monkeypatch.setattr(
        dk,
        "load",
        lambda source, **kwargs: random_backbone if "/" in source else load(source, **kwargs),
    )
    assert is_small(switched("SD v1.5"))
    assert (
        "not SD v1.5 but what ships with the package: Failed to download weights for tag 'openai'"
        in capsys.readouterr().out
    )


def test_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert load_large("big", {"big": lambda: pytest.fail("loaded")}) is None
    assert (
        capsys.readouterr().out == "not big but what ships with the package: there is no GPU here\n"
    )


def test_what_can_be_had_is_returned(gpu, capsys):
    assert load_large("big", {"big": lambda: ("model", "reward")}) == ("model", "reward")
    assert load_large("shapes", {}) is None
    assert load_large("full", {}, small=("small", "full")) is None
    assert capsys.readouterr().out == ""


def test_other_errors_are_errors(gpu):
    with pytest.raises(ValueError, match=r"Did you mean 'SD v1.5'"):
        load_large("SD 1.5", {"SD v1.5": lambda: None})
    with pytest.raises(ZeroDivisionError):
        load_large("big", {"big": lambda: 1 / 0})
