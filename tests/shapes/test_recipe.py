"""The recipe runs from nothing, and stops and resumes to the same weights."""

import json

import pytest
import torch
from studies.training import (
    __main__,
    aesthetic,
    autoencoder,
    clip,
    denoiser,
    flow,
    loop,
    preference,
    recipe,
    robust,
    tiny,
)

PLACE = {"seed": 0, "device": "cpu"}


class Stop(Exception):
    pass


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Small batches, and little that is measured."""
    for module in (autoencoder, clip, denoiser, flow, preference, robust, tiny):
        monkeypatch.setattr(module, "BATCH", 4 if module is preference else 8)
    for module, count in ((clip, 16), (preference, 4), (aesthetic, 8)):
        monkeypatch.setattr(module, "PROBES", count)
    monkeypatch.setattr(autoencoder, "SCALED", 16)


def train_autoencoder(path, steps):
    return autoencoder.train(path, steps=steps, **PLACE)


def train_preference(path, steps):
    torch.manual_seed(3)
    return preference.train(path, clip.build("clip").eval(), steps=steps, **PLACE)


def train_aesthetic(path, steps):
    return aesthetic.train(path, steps=steps, **PLACE)


@pytest.mark.parametrize("train", [train_autoencoder, train_preference, train_aesthetic])
def test_an_interrupted_stage_resumes_to_the_same_weights(monkeypatch, tmp_path, train):
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)  # a checkpoint after every step
    whole, _ = train(tmp_path / "whole.pt", 4)
    draw, steps = loop.Draw, []

    def stop_at_third(seed, step):
        steps.append(step)
        if steps == [0, 1, 2]:
            raise Stop
        return draw(seed, step)

    monkeypatch.setattr(loop, "Draw", stop_at_third)
    with pytest.raises(Stop):
        train(tmp_path / "parts.pt", 4)
    parts, log = train(tmp_path / "parts.pt", 4)
    assert steps == [0, 1, 2, 2, 3]  # the third is repeated, the others are not
    assert log.steps == 4
    for a, b in zip(whole.state_dict().values(), parts.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_smoke_recipe_makes_every_folder(tmp_path):
    from diffusers import StableDiffusionPipeline

    job = recipe.Job(tmp_path, threads=torch.get_num_threads(), budget=recipe.SMOKE)
    for stage in recipe.STEPS:
        recipe.run_stage(stage, job)
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a red circle", num_inference_steps=2).images[0].size == (64, 64)
    for stage in recipe.STEPS:
        entry = json.loads((tmp_path / "training" / f"{stage}.json").read_text())
        assert entry["steps"] >= 2
        assert entry["curve"]
    assert not list(tmp_path.rglob("*.partial"))


def test_the_command_passes_its_options_on(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(recipe, "train", lambda out, **options: calls.append((out, options)))
    __main__.main([str(tmp_path), "--stage", "clip", "--smoke", "--device", "cpu"])
    expected = {"stages": ("clip",), "threads": 1, "budget": recipe.SMOKE} | PLACE
    assert calls == [(str(tmp_path), expected)]
    with pytest.raises(SystemExit):
        __main__.main([str(tmp_path), "--stage", "vae"])


def test_a_stage_that_is_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown stage 'vae'"):
        recipe.train(tmp_path, stages=("vae",))


def test_a_folder_of_another_seed_is_not_taken_up(tmp_path):
    recipe.Job(tmp_path, seed=1).claim()
    recipe.Job(tmp_path, seed=1).claim()
    with pytest.raises(ValueError, match="take another folder"):
        recipe.Job(tmp_path, seed=2).claim()


def test_every_stage_is_run_once_and_has_its_numbers():
    lanes = [stage for phase in recipe.PHASES for lane in phase for stage in lane]
    assert sorted(lanes) == sorted(recipe.STEPS) == sorted(recipe.SEEDS) == sorted(recipe.RUNS)
    assert len(set(recipe.SEEDS.values())) == len(recipe.SEEDS)
