"""What `datekit generate` reads: prompts and their seeds, and the options that make a sampler."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import datekit as dk
from datekit.evaluation.generate import Row, read_prompts
from datekit.evaluation.options import (
    METHODS,
    OPTIONS,
    check_read,
    default_reward,
    method_from,
    reward_named,
    sampler_from,
)

pytestmark = pytest.mark.usefixtures("alone")


@given(st.integers(0, 50), st.integers(0, 10**6))
def test_seeds_follow_from_row_and_seed_alone(tmp_path_factory, row, seed):
    path = tmp_path_factory.getbasetemp() / "many.txt"
    path.write_text("\n".join(f"prompt {n}" for n in range(51)))
    rows = read_prompts(path, seed=seed)
    assert read_prompts(path, seed=seed, limit=row + 1) == rows[: row + 1]
    assert len({r.seed for r in rows}) == 51
    assert all(0 <= r.seed < 2**31 for r in rows)
    assert read_prompts(path, seed=seed + 1)[row].seed != rows[row].seed


def test_prompts_from_csv_text_and_the_shapes_world(tmp_path):
    table = tmp_path / "a.csv"
    table.write_text(
        '\ufeffSeed,Caption,family\n5,"a cat, a dog",two\n6,"a ""big"" cat",single\n',
        encoding="utf-8",
    )
    assert read_prompts(table) == [Row("a cat, a dog", 5, "two"), Row('a "big" cat', 6, "single")]
    (tmp_path / "a.tsv").write_text("prompt\tseed\na, b\t3\n")
    assert read_prompts(tmp_path / "a.tsv") == [Row("a, b", 3)]
    (tmp_path / "a.txt").write_text("one, with a comma\n\n  two\n")
    assert [row.prompt for row in read_prompts(tmp_path / "a.txt")] == ["one, with a comma", "two"]
    rows = read_prompts("shapes:3")
    assert [row.family for row in rows] == [f for f in dk.shapes.FAMILIES for _ in range(3)]
    assert {row.family for row in read_prompts("shapes:5:position")} == {"position"}


@pytest.mark.parametrize(("name", "text", "message"), [
    ("a.csv", "words,seed\nx,1\n", "needs a column prompt, caption or text; it has words, seed"),
    ("a.csv", "prompt,seed\nx,one\n", "row 0: the seed must be a whole number, got 'one'"),
    ("a.csv", "prompt,seed\nx,1\ny\n", "row 1: the seed must be a whole number, got None"),
    ("a.csv", "prompt,seed\nx,-1\n", "a seed is from 0"),
    ("a.txt", "\n\n", "holds no prompts"),
    ("a.csv", "prompt,seed\na red circle, a blue square,1\n", "row 0 has more cells than the header; a prompt with a comma stands in quotes"),
    ("a.csv", "prompt,Prompt\nx,y\n", "two columns of one name"),
    ("a.jsonl", '{"prompt": "x"}\n', "not from JSON"),
])  # fmt: skip
def test_bad_prompts(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / name)


def test_bad_prompts_of_the_shapes_world_and_limits(tmp_path):
    for bad in ("shapes:", "shapes:x", "shapes:0", "shapes:3:position:4"):
        with pytest.raises(ValueError, match="shapes:N"):
            read_prompts(bad)
    with pytest.raises(ValueError, match="limit must"):
        read_prompts("shapes:1", limit=0)
    with pytest.raises(FileNotFoundError):
        read_prompts(tmp_path / "none.txt")


def test_options_make_the_sampler_that_they_name(target):
    options = {
        "model": "gaussian",
        "method": "date",
        "steps": 7,
        "guidance_scale": 2.5,
        "scheduler": "dpm++",
        "rho": 0.25,
        "update_every": 3,
        "anchor": "running",
        "inner_steps": 2,
        "device": "cpu",
    }
    sampler = sampler_from(options)
    assert (sampler.num_steps, sampler.guidance_scale, sampler.solver.name) == (7, 2.5, "dpm++")
    method = sampler.method
    assert (method.rho, method.when, method.anchor, method.inner_steps) == (
        0.25,
        dk.every(3),
        "running",
        2,
    )
    assert method.reward.name == "target"
    assert method_from("random", {"rho": 2.0, "update_fraction": 0.5}) == dk.RandomDirection(
        2.0, dk.fraction(0.5)
    )
    assert method_from("date", {"update_steps": "0,4:7"}, target).when == dk.steps(0, 4, 5, 6)
    assert method_from("date", {"update_stage": "late"}, target).when == dk.late()
    both = method_from("date+ebca", {"rho": 1.0, "ebca_gamma_attn": 0.02}, target)
    assert both.rho == 1.0
    assert {type(part) for part in both.parts} == {dk.DATE, dk.EBCA}
    best = sampler_from({"model": "gaussian", "method": "fixed", "best_of": 4, "reward": "target"})
    assert (best.n, best.reward.name, best.sampler.method) == (4, "target", dk.Fixed())


@pytest.mark.parametrize("name", METHODS)
def test_an_option_that_a_method_does_not_read_is_refused(name):
    value = {
        "reward": "target",
        "update_steps": "0",
        "update_stage": "late",
        "anchor": "reset",
        "between": "revert",
        "update": "both",
    }
    read, refused = [], []
    for option in OPTIONS:
        try:
            check_read(name, {option: value.get(option, 1)}, None)
            read.append(option)
        except ValueError as error:
            refused.append(str(error))
    assert all(f"--method {name} does not read --" in message for message in refused)
    assert len(refused) == len(OPTIONS) - len(read)
    assert ("rho" in read) == (name in ("date", "random"))
    assert ("update_every" in read) == (name != "fixed")


def test_rewards_by_name(target):
    images, prompts = torch.rand(2, 3, 8, 8, dtype=torch.float64), ["a", "b"]
    mixed = reward_named("0.25 * target + TargetReward")
    assert torch.allclose(mixed(images, prompts), 1.25 * target(images, prompts))
    assert (default_reward("shapes"), default_reward("gaussian"), default_reward("a/b")) == (
        "shapes-clip",
        "target",
        "CLIPScore",
    )
    for bad in ("shapes-clop", "0.5 *", "ClipScore:x"):
        with pytest.raises(ValueError, match=r"unknown reward|cannot read"):
            reward_named(bad)
    with pytest.raises(ValueError, match="needs a tag"):
        reward_named("CLIPScore:ViT-g-14")
    with pytest.raises(ValueError, match="not several"):
        method_from("random", {"update_every": 2, "update_stage": "late"})
    with pytest.raises(ValueError, match="unknown method"):
        method_from("dates", {})
    with pytest.raises(ValueError, match="0,10,20"):
        method_from("random", {"update_steps": "1-3"})
