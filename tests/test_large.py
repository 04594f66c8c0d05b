"""The notebooks' switch to a large model where there is none: a sentence, the shipped model."""

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
    """A GPU that torch believes in; what is loaded without a device goes to the CPU."""
    for module in (dk, dk.rewards):
        monkeypatch.setattr(module, "load", functools.partial(module.load, device="cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert dk.load("shapes").device.type == "cpu"


def switched(model: str) -> dict:
    """What stands after the notebook's own cells, imports and the switch, for this model."""
    code = [cell.source for cell in jupytext.read(NOTEBOOK).cells if cell.cell_type == "code"]
    first, switch = code[:2]
    assert "load_large(" in switch
    assert first.count('MODEL = "shapes"') == 1
    found: dict = {}
    exec(first.replace('MODEL = "shapes"', f"MODEL = {model!r}") + "\n" + switch, found)
    return found


def is_small(found: dict) -> bool:
    names = [backbone.name for backbone in found["backbones"]]
    kept = (names, found["reward"].name, found["RHO"])
    return kept == (list(dk.backbones.SHIPPED), "shapes-clip", None)


@pytest.mark.parametrize("model", ["SD v1.5", "FLUX"])
def test_without_weights_the_notebook_goes_on_with_the_shipped_models(gpu, model, capsys):
    """The hub is out of reach: diffusers' own error, in a sentence."""
    assert is_small(switched(model))
    said = capsys.readouterr().out.splitlines()[0]
    assert said.startswith(f"not {model} but what ships with the package: ")
    assert "is no folder here, and as a hub id it did not load" in said


def test_without_the_rewards_weights_too(gpu, monkeypatch, capsys, random_backbone):
    """The model is there, the CLIP is not: open_clip's own error."""
    load = dk.load
    there = lambda source, **told: random_backbone if "/" in source else load(source, **told)  # noqa: E731
    monkeypatch.setattr(dk, "load", there)
    assert is_small(switched("SD v1.5"))
    assert "Failed to download weights for tag 'openai'" in capsys.readouterr().out


def test_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert load_large("big", {"big": lambda: pytest.fail("loaded")}) is None
    assert "there is no GPU here" in capsys.readouterr().out


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
