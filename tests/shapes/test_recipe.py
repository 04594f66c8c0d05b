"""The recipe runs from nothing, stops and resumes to the same weights, and refuses what it does not know."""

import json

import pytest
import torch

from datekit import cli, shapes
from studies.training import autoencoder, loop, recipe


class Stop(Exception):
    pass


@pytest.fixture
def eager(monkeypatch):
    """Checkpoints after every step."""
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)


def test_an_interrupted_stage_resumes_to_the_same_weights(eager, monkeypatch, tmp_path):
    options = {"steps": 4, "seed": 0, "device": "cpu"}
    whole, _ = autoencoder.train(tmp_path / "whole.pt", **options)

    draw, steps = loop.Draw, []

    def stop_at_third(seed, step):
        steps.append(step)
        if steps == [0, 1, 2]:
            raise Stop
        return draw(seed, step)

    monkeypatch.setattr(loop, "Draw", stop_at_third)
    with pytest.raises(Stop):
        autoencoder.train(tmp_path / "parts.pt", **options)
    parts, log = autoencoder.train(tmp_path / "parts.pt", **options)
    assert steps == [0, 1, 2, 2, 3]  # the third is repeated, the others are not
    assert log.steps == 4
    for a, b in zip(whole.state_dict().values(), parts.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_smoke_recipe_makes_every_folder(tmp_path):
    from diffusers import StableDiffusionPipeline

    for stage in recipe.STAGES:
        recipe.run_stage(
            stage,
            out=tmp_path,
            device="cpu",
            threads=torch.get_num_threads(),
            budget=recipe.SMOKE,
            seed=0,
        )
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    image = pipe("a red circle", num_inference_steps=2).images[0]
    assert image.size == (64, 64)
    for stage in recipe.STAGES:
        entry = json.loads((tmp_path / "training" / f"{stage}.json").read_text())
        assert entry["steps"] >= 2
        assert entry["curve"]
    assert not list(tmp_path.rglob("*.partial"))


def test_command_line_passes_its_options_on(monkeypatch, tmp_path, capsys):
    calls = []
    monkeypatch.setattr(recipe, "train", lambda out, **options: calls.append((out, options)))
    assert (
        cli.main(
            [
                "train",
                "shapes",
                "--out",
                str(tmp_path),
                "--stage",
                "clip",
                "--smoke",
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    assert calls == [
        (
            str(tmp_path),
            {"stages": ("clip",), "device": "cpu", "threads": 1, "budget": recipe.SMOKE, "seed": 0},
        )
    ]
    with pytest.raises(SystemExit):
        cli.main(["train"])


def test_unknown_stage_is_refused(tmp_path, capsys):
    with pytest.raises(ValueError, match="there are autoencoder, clip"):
        recipe.train(tmp_path, stages=("vae",))
    with pytest.raises(SystemExit):
        cli.main(["train", "shapes", "--stage", "vae"])
    assert "unknown stage" in capsys.readouterr().err


def test_draws_depend_on_seed_and_step_alone():
    assert (
        loop.Draw(1, 2).numpy.random()
        == loop.Draw(1, 2).numpy.random()
        != loop.Draw(1, 3).numpy.random()
    )
    assert shapes.WEIGHTS.name == "weights"
