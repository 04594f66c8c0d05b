"""Several things at once: prompt sets, rewards of their parts, the study, and which concept is pushed."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import datekit as dk
from datekit.cli import main
from datekit.evaluation import prompt_sets
from studies import claims, concepts, trials

STUDY = Path(concepts.__file__).parent / "results" / "concepts.json"


def test_the_sets_of_attend_and_excite():
    """66, 144 and 66: pairs of 12, 12 x 12, pairs of 12; nothing twice, each word as often as it must be."""
    sets = {name: prompt_sets.attend_and_excite(name) for name in prompt_sets.SETS}
    assert [len(found) for found in sets.values()] == [66, 144, 66]
    assert len(set(prompt_sets.attend_and_excite())) == 276
    words = {
        name: Counter(word for prompt in found for word in prompt.split())
        for name, found in sets.items()
    }
    colours = [
        "red",
        "orange",
        "yellow",
        "green",
        "blue",
        "purple",
        "pink",
        "brown",
        "gray",
        "black",
        "white",
    ]
    animals = [
        "cat",
        "dog",
        "bird",
        "bear",
        "lion",
        "horse",
        "elephant",
        "monkey",
        "frog",
        "turtle",
        "rabbit",
        "mouse",
    ]
    objects = [
        "backpack",
        "glasses",
        "crown",
        "suitcase",
        "chair",
        "balloon",
        "bow",
        "car",
        "bowl",
        "bench",
        "clock",
        "apple",
    ]
    assert {words["animals"][animal] for animal in animals} == {11}
    assert {words["animals-objects"][word] for word in animals + objects} == {12}
    assert {words["objects"][thing] for thing in objects} == {11}
    assert (
        sum(words["animals-objects"][colour] for colour in colours) == 9 * 12
    )  # glasses, crown and bow are worn, without a colour
    assert sum(words["objects"][colour] for colour in colours) == 132
    assert set().union(*words.values()) == {*colours, *animals, *objects, "a", "and", "with"}
    assert {"a cat and a dog", "a lion with a crown"} < set(prompt_sets.attend_and_excite())
    assert (
        prompt_sets.attend_and_excite(seed=1)
        != prompt_sets.attend_and_excite()
        == prompt_sets.attend_and_excite(seed=0)
    )
    with pytest.raises(ValueError, match="Did you mean 'animals'"):
        prompt_sets.attend_and_excite("animal")
    for seed in (-1, 0.5, None):
        with pytest.raises(ValueError, match="seed must be a whole number from 0 up, got"):
            prompt_sets.attend_and_excite("objects", seed)


def test_the_parts_of_a_prompt():
    assert prompt_sets.parts("a lion with a crown") == ["a lion", "a crown"]
    assert prompt_sets.parts("a red car and a blue bench") == ["a red car", "a blue bench"]
    assert prompt_sets.parts("a red circle") == ["a red circle"]
    for family in ("position", "attribution", "three", "two"):
        for prompt in dk.shapes.prompts("heldout", 8, family=family):
            assert prompt_sets.parts(prompt) == re.findall(
                r"a (?:\w+ )??(?:circle|square|triangle|star)", prompt
            )
    assert all(len(prompt_sets.parts(prompt)) == 2 for prompt in prompt_sets.attend_and_excite())


def test_prompts_without_a_part():
    assert prompt_sets.without("a red circle left of a blue square") == [
        "a blue square",
        "a red circle",
    ]
    assert prompt_sets.without("a cat, a dog and a bird") == [
        "a dog and a bird",
        "a cat and a bird",
        "a cat and a dog",
    ]
    assert prompt_sets.without("a red circle") == [""]


@pytest.mark.parametrize("name", ["shapes-clip", "shapes-clip-heldout"])
@pytest.mark.parametrize("reduce", ["min", "sum"])
def test_what_parts_add_tells_a_picture_that_lacks_one(name, reduce):
    """Drawn exactly, with both things and with one left out. As texts of their own the parts do not tell: these rewards read a text
    as all that a picture shows."""
    rng = np.random.default_rng(0)
    scenes = [
        s
        for s in dk.shapes.sample_scenes(200, seed=5)
        if len(s.things) == 2 and "attribution" in dk.shapes.families(s)
    ][:30]
    prompts = [dk.shapes.caption(scene, "attribution", rng) for scene in scenes]
    whole, lacking = (
        dk.shapes.render(scenes),
        dk.shapes.render([replace(scene, things=scene.things[1:]) for scene in scenes]),
    )
    reward, share = dk.rewards.load(name), {}
    with torch.no_grad():
        for words, without in (("adds", prompt_sets.without), ("alone", None)):
            h = dk.rewards.per_concept(reward, prompt_sets.parts, reduce, without)
            share[words] = (h(whole, prompts) > h(lacking, prompts)).double().mean().item()
    assert share["adds"] > 0.95
    assert share["alone"] < 0.6


def test_what_a_part_adds_by_hand():
    images, prompt = torch.rand(1, 3, 16, 16), "a red circle and a blue square"
    counting = lambda images, prompts: (
        images.mean((1, 2, 3)) * torch.tensor([float(len(p)) for p in prompts])
    )
    for reduce, function in (("sum", sum), ("min", min)):
        h = dk.rewards.per_concept(counting, prompt_sets.parts, reduce, prompt_sets.without)
        adds = function(len(prompt) - len(other) for other in ("a blue square", "a red circle"))
        torch.testing.assert_close(h(images, [prompt]), images.mean((1, 2, 3)) * adds)
    with pytest.raises(ValueError, match="one prompt for each of the 2 parts"):
        dk.rewards.per_concept(counting, prompt_sets.parts, "min", lambda prompt: ["x"])(
            images, [prompt]
        )


@pytest.mark.parametrize(("reduce", "function"), [("min", torch.minimum), ("sum", torch.add)])
def test_date_climbs_the_reward_of_the_parts(random_backbone, brightness, reduce, function):
    """c_hat of a per-concept reward, from a gradient taken by hand, on two prompts of two parts each."""
    prompts = ["a red circle and a blue square", "a star left of a red triangle"]
    h = dk.rewards.per_concept(brightness, prompt_sets.parts, reduce)
    sampler = dk.Sampler(random_backbone, dk.DATE(h, rho=0.3), num_steps=4, guidance_scale=3.0)
    state = sampler.init(prompts, seeds=[0, 1])
    c = state.c_org.clone().requires_grad_()
    images = random_backbone.decode(sampler.predict(state, c).x0bar)
    values = function(
        brightness(images, ["a red circle", "a star"]),
        brightness(images, ["a blue square", "a red triangle"]),
    )
    (g,) = torch.autograd.grad(values.sum(), c)
    _, info = sampler.step(state)
    torch.testing.assert_close(info.h, values.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        info.c,
        state.c_org + 0.3 * g / g.flatten(1).norm(dim=1)[:, None, None],
        rtol=1e-3,
        atol=1e-4,
    )


@pytest.fixture
def small(monkeypatch):
    backbone = trials.load("shapes", device="cpu")
    backbone.recommended = replace(backbone.recommended, num_steps=2)
    monkeypatch.setattr(trials, "load", lambda model, device: backbone)
    monkeypatch.setattr(concepts, "RADII", (1 / 64,))
    monkeypatch.setattr(concepts, "WHEN", {"all": dk.every(), "late": dk.late()})


def test_the_study_end_to_end(tmp_path, small, monkeypatch):
    out = tmp_path / "concepts.json"
    arguments = [
        "concepts",
        "--out",
        str(out),
        "--pairs",
        "3",
        "--tuning-pairs",
        "3",
        "--steps",
        "3",
    ]
    judge, count = trials.Trials.judge, []

    def interrupted(self, draw):
        count.append(1)
        if len(count) == 5:
            raise KeyboardInterrupt
        return judge(self, draw)

    monkeypatch.setattr(trials.Trials, "judge", interrupted)
    assert main(arguments) == 130
    assert main(arguments) == 0
    assert len(count) == 1 + 1 + 4 + 7
    content = json.loads(out.read_text())
    rows = [
        f"{name}, {stage}"
        for stage in ("all", "late")
        for name in (*concepts.REWARDS, concepts.ALONE)
    ]
    assert list(content["rows"]) == ["fixed", *rows[:-1]]
    for row in content["rows"].values():
        assert len(row["failures"]) == 3
        assert sum(row[kind][0] for kind in (*claims.FAILURES, "all right")) == pytest.approx(
            1, abs=1e-3
        )
    assert len(concepts.markdown(content).splitlines()) == 2 + 8
    assert main([*arguments[:4], "2"]) == 2


def made_up(**rows):
    return {"rows": {name: {"failures": letters} for name, letters in rows.items()}}


def test_counting_of_failures_by_hand():
    content = made_up(fixed="nsc.rx", method="..c.rn")
    wrong = concepts.wrong("nsc.rx")
    assert {kind: values.tolist() for kind, values in wrong.items()} == {
        "neglect": [1, 0, 0, 0, 0, 0],
        "swapped": [0, 1, 0, 0, 0, 0],
        "colour": [0, 0, 1, 0, 0, 0],
        "all right": [0, 0, 0, 1, 0, 0],
        "relation": [0, 0, 0, 0, 1, 0],
        "surplus": [0, 0, 0, 0, 0, 1],
    }
    assert concepts.wrong("nsc.rx", "position")["swapped"].tolist() == [
        1,
        0,
    ]  # the second and the fifth pair
    assert concepts.turned(content, "method") == {
        "neglect": (1, 1),
        "swapped": (1, 1),
        "colour": (1, 0),
        "relation": (1, 0),
        "surplus": (1, 0),
    }
    found = concepts.differences(content, "method")
    assert found["all right"][0] == pytest.approx(2 / 6)
    assert found["neglect"][0] == 0
    assert found["colour"] == [0, 0, 0]


def test_the_prompts_of_the_study_take_turns_and_are_not_tuned_on():
    test, tune = concepts.texts(30, 10, "test"), concepts.texts(30, 10, "tune")
    assert [len(prompt_sets.parts(prompt)) for prompt in test] == [2, 2, 3] * 10
    assert all(" and " in prompt for prompt in test[::3] + test[2::3])
    assert not set(test) & set(tune)


if STUDY.is_file():  # made by a command that takes long

    def test_the_committed_study():
        content = json.loads(STUDY.read_text())
        assert content["pairs"] >= 200
        rows = {f"{name}, {stage}" for name in concepts.REWARDS for stage in concepts.WHEN}
        assert set(content["rows"]) == {"fixed", f"{concepts.ALONE}, all"} | rows
        before = concepts.wrong(content["rows"]["fixed"]["failures"])
        for row in content["rows"].values():
            assert len(row["failures"]) == content["pairs"]
            for kind, values in concepts.wrong(row["failures"]).items():
                assert row[kind][0] == pytest.approx(values.mean(), abs=1e-4)
                assert row[f"{kind} - fixed"][0] == pytest.approx(
                    (values - before[kind]).mean(), abs=1e-4
                )


def test_shares_of_concepts_are_sums_over_their_words(shapes, reward):
    prompts = ["a red circle left of a blue square", "a green star, a red circle and a blue star"]
    run = dk.Sampler(shapes, dk.DATE(reward, rho=1.0), num_steps=4).start(prompts, seeds=[0, 1])
    shares = dk.analysis.token_shares(run)
    found = dk.analysis.concept_shares(shares, prompt_sets.parts)
    assert [len(row) for row in found] == [2, 3]
    assert shares.tokens[0][:9] == ("<start>", *prompts[0].split())
    torch.testing.assert_close(
        found[0], torch.stack([shares.share[0, 1:4].sum(), shares.share[0, 6:9].sum()])
    )
    torch.testing.assert_close(
        dk.analysis.concept_shares(shares, prompt_sets.parts, moved=True)[0][1],
        shares.moved_share[0, 6:9].sum(),
    )
    with pytest.raises(ValueError, match=r"no tokens of .* spell its part 'a pink star'"):
        dk.analysis.concept_shares(shares, lambda prompt: ["a pink star"])


def test_words_in_pieces_and_prompts_read_twice():
    grad = torch.tensor([[1.0, 2.0, 4.0, 8.0, 16.0, 32.0]])
    shares = dk.analysis.TokenShares(
        0, 1.0, ("a giraffe",), (0,), (("<start>", "a", "gir", "affe", "<end>", "A"),), grad, grad
    )
    assert dk.analysis.concept_shares(shares, lambda p: ["a giraffe"])[0].item() == pytest.approx(
        14 / 63
    )
    shares = replace(shares, tokens=(("a", "cat", "<end>", "A", "cat", "<pad>"),))
    assert dk.analysis.concept_shares(shares, lambda p: ["a cat"])[0].item() == pytest.approx(
        (1 + 2 + 8 + 16) / 63
    )


def test_figures_of_comparisons(target):
    run = dk.Sampler(dk.load("gaussian"), num_steps=6).start(
        ["a red circle", "a green star"], seeds=[0, 1]
    )
    run.step(3)
    cosine = dk.analysis.guidance_cosine(
        run, dk.DATE(target, rho=0.4), dk.UniversalGuidance(target, 5.0), steps=[0, 2]
    )
    ax = dk.plot.alignment({"gaussian": cosine})
    line = next(line for line in ax.lines if line.get_label() == "gaussian")
    np.testing.assert_allclose(line.get_ydata(), cosine.cosine.mean(1))
    assert list(line.get_xdata()) == [0, 2]
    assert "gaussian: " in dk.plot.alt_text(ax)
    rows = {"fixed": concepts.wrong("nn.."), "DATE": concepts.wrong("n...")}
    ax = dk.plot.failures(rows, ax=plt.subplots()[1])
    widths = {bars.get_label(): [bar.get_width() for bar in bars] for bars in ax.containers}
    assert widths["neglect"] == [0.5, 0.25]
    assert widths["all right"] == [0.5, 0.75]
    assert "fixed: neglect 50.0%" in dk.plot.alt_text(ax)
    plt.close("all")
