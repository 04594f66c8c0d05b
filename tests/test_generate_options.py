"""What `datekit generate` reads: prompts with seeds, and words that make a sampler."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import datekit as dk
from datekit.cli import build_parser, method_from, sampler_from
from datekit.evaluation.metrics import default_reward, reward_by_name
from datekit.evaluation.prompts import read_prompts
from datekit.methods.rho_rules import Taylor

pytestmark = pytest.mark.usefixtures("alone")


@given(st.integers(0, 50), st.integers(0, 10**6))
def test_seeds_follow_from_row_and_seed_alone(tmp_path_factory, row, seed):
    path = tmp_path_factory.getbasetemp() / "many.txt"
    path.write_text("\n".join(f"prompt {n}" for n in range(51)))
    rows = read_prompts(path, seed=seed)
    assert len({r.seed for r in rows}) == 51
    assert all(0 <= r.seed < 2**31 for r in rows)
    assert read_prompts(path, seed=seed + 1)[row].seed != rows[row].seed


def sampler(*words: str):
    """What `datekit generate` samples with, for the closed form."""
    command = ["generate", "--prompts", "p", "--out", "o", "--model", "gaussian", "--device", "cpu"]
    return sampler_from(build_parser().parse_args([*command, *words]))


def test_words_make_the_sampler_that_they_name(target):
    made = sampler(
        *("--steps", "7", "--guidance-scale", "2.5", "--scheduler", "dpm++", "--decode-batch", "1"),
        *("--rho", "0.25", "--update-every", "3", "--anchor", "running", "--inner-steps", "2"),
    )
    assert (made.num_steps, made.guidance_scale, made.solver.name) == (7, 2.5, "dpm++")
    assert (made.memory.decode_batch, made.memory.keep_graph) == (1, True)
    date = made.method
    assert (date.rho, date.when, date.anchor, date.inner_steps) == (0.25, dk.every(3), "running", 2)
    assert date.reward.name == "target"  # by the model
    best = sampler("--method", "Fixed", "--best-of", "4:TargetReward:0.5")
    assert (best.n, best.reward.width, best.sampler.method) == (4, 0.5, dk.Fixed())
    assert sampler("--method", "Fixed", "--best-of", "4").reward.name == "target"
    steered = sampler("--method", "Fixed", "--particles", "3,strength=20")
    assert (steered.particles, steered.strength, steered.eta) == (3, 20, 1)
    assert (type(steered), steered.reward.name) == (dk.FKSteering, "target")
    assert sampler("--particles", "3", "--eta", "0.5").eta == 0.5
    search = sampler("--reno", "2,rate=1.5", "--steps", "4")
    assert (search.iterations, search.rate, search.reward.name) == (2, 1.5, "target")
    assert (search.sampler.num_steps, search.sampler.eta) == (4, 0)
    words = {"reward": "target", "rho": "Taylor:0.25", "gamma_attn": ".02"}
    parts = {type(part): part for part in method_from("DATE+EBCA", words).parts}
    assert (parts[dk.DATE].rho, parts[dk.EBCA].gamma_attn) == (Taylor(0.25), 0.02)


@pytest.mark.parametrize(("word", "schedule"), [
    ("third:0", dk.early()), ("every", dk.every()), ("fraction:0.5", dk.fraction(0.5)),
    ("steps:0,4:7", dk.steps(0, 4, 5, 6)), ("steps:10:20:4", dk.steps(10, 14, 18)),
])  # fmt: skip
def test_schedules_by_words(word, schedule):
    expected = dk.RandomDirection(rho=2, when=schedule)
    assert method_from("RandomDirection", {"rho": "2", "when": word}) == expected


@pytest.mark.parametrize(("name", "words", "message"), [
    ("Date", {}, "unknown method 'Date'.*'DATE'"),
    ("Fixed", {"rho": "1"}, "--method Fixed does not read rho"),
    ("EBCA", {"reward": "target", "inner_steps": "2"}, "does not read reward, inner_steps"),
    ("RandomDirection", {"when": "steps:1-3"}, "steps are numbers and ranges.*'1-3'"),
    ("RandomDirection", {"when": "evry"}, "Did you mean 'every'"),
    ("DATE", {"reward": "target", "inner_steps": "x"}, "inner_steps takes a number, got 'x'"),
    ("SoftREPA", {}, "tokens"),
])  # fmt: skip
def test_words_that_mean_nothing(name, words, message):
    with pytest.raises((ValueError, TypeError), match=message):
        method_from(name, words)
    with pytest.raises(ValueError, match="keep_graph takes true or false"):
        sampler("--keep-graph", "no")


def test_rewards_by_name(target):
    images, prompts = torch.rand(2, 3, 8, 8, dtype=torch.float64), ["a", "b"]
    for name in ("target", "TargetReward", "TargetReward:0.25", "TargetReward:width=0.25"):
        assert torch.equal(reward_by_name(name)(images, prompts), target(images, prompts))
    defaults = [default_reward(model) for model in ("shapes", "gaussian", "a/b")]
    assert defaults == ["shapes-clip", "target", "CLIPScore:ViT-L-14,openai"]
    for bad in ("shapes-clop", "ClipScore:x"):
        with pytest.raises(ValueError, match="unknown reward"):
            reward_by_name(bad)
    with pytest.raises(ValueError, match="needs a tag"):
        reward_by_name("CLIPScore:ViT-g-14")
