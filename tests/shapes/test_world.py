"""Scenes, captions and pictures agree with each other and with independent checks."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path
from studies.training.negatives import hard_negatives, twin

from datekit import shapes
from datekit.shapes import renderer, world
from datekit.shapes.world import COLOURS, HELD_OUT, KINDS, RELATIONS, SEEN, SHAPES, Scene, Thing

seeds = st.integers(0, 2**32 - 1)


def test_held_out_pairs_are_a_seventh_and_treat_all_kinds_alike():
    assert len(HELD_OUT) + len(SEEN) == 276
    assert 0.12 < len(HELD_OUT) / 276 < 0.17
    uses = [sum(kind in pair for pair in HELD_OUT) for kind in KINDS]
    assert min(uses) >= 3
    assert max(uses) <= 4


def test_training_scenes_never_show_a_held_out_pair():
    for scene in shapes.sample_scenes(5000, seed=0):
        for a, b in combinations(scene.things, 2):
            assert not shapes.held_out(a.kind, b.kind)
    for scene in shapes.sample_scenes(200, seed=0, split="heldout"):
        assert shapes.held_out(*(thing.kind for thing in scene.things))
    assert shapes.sample_scenes(20, seed=3) == shapes.sample_scenes(20, seed=3)
    assert shapes.sample_scenes(20, seed=3) != shapes.sample_scenes(20, seed=4)
    with pytest.raises(ValueError, match="split"):
        shapes.sample_scenes(1, seed=0, split="test")


@given(seeds)
def test_things_lie_apart_and_inside(seed):
    scene = shapes.sample_scenes(1, seed)[0]
    masks = renderer.coverage(scene.things, 96) > 0
    assert masks.sum(0).max() <= 1
    assert not masks[:, [0, -1]].any()
    assert not masks[:, :, [0, -1]].any()


@given(seeds, st.sampled_from(RELATIONS))
def test_place_puts_things_as_wanted(seed, wanted):
    rng = np.random.default_rng(seed)
    a, b = shapes.place((KINDS[3], KINDS[8]), rng, wanted).things
    assert world.relation(a, b) == wanted == world.OPPOSITE[world.relation(b, a)]


@pytest.mark.parametrize("shape", SHAPES)
def test_edges_agree_with_supersampling(shape):
    # Another algorithm: point-in-polygon by matplotlib on a grid 16 times as fine.
    thing, n, fine = Thing("red", shape, 0.48, 0.53, 0.17), 64, 16
    ticks = (np.arange(n * fine) + 0.5) / (n * fine)
    points = np.stack(np.meshgrid(ticks, ticks), -1).reshape(-1, 2) - [thing.x, thing.y]
    points = points / thing.size
    inside = np.hypot(*points.T) < 1
    if shape != "circle":
        inside = Path(renderer.POLYGONS[shape]).contains_points(points)
    expected = inside.reshape(n, fine, n, fine).mean((1, 3))
    difference = np.abs(renderer.coverage([thing], n)[0].numpy() - expected)
    assert difference.mean() < 0.002
    assert difference.max() < 0.25  # corners: a distance knows one edge at a time


def test_render_paints_colours_on_the_ground():
    scenes = [Scene((Thing("blue", "square", 0.3, 0.5, 0.15),), 0.8), Scene((), 1.0)]
    images = shapes.render(scenes)
    assert images.shape == (2, 3, 64, 64)
    assert images.dtype == torch.float32
    assert torch.allclose(images[0, :, 32, 19], torch.tensor(COLOURS["blue"]))
    assert torch.allclose(images[0, :, 0, 0], torch.tensor(0.8))
    assert torch.equal(images[1], torch.ones(3, 64, 64))
    assert shapes.render(scenes, resolution=32).shape == (2, 3, 32, 32)


@given(seeds, st.sampled_from(["train", "heldout"]))
@settings(max_examples=200)
def test_captions_are_true_and_read_back(seed, split):
    scene = shapes.sample_scenes(1, seed, split)[0]
    rng = np.random.default_rng(seed)
    for family in shapes.families(scene):
        text = shapes.caption(scene, family, rng)
        claims = shapes.parse(text)
        assert str(claims) == text
        assert claims.hold(scene.things)
        for false in hard_negatives(text, scene.things, 7, rng):
            assert not shapes.parse(false).hold(scene.things)


@given(seeds)
@settings(max_examples=200)
def test_twins_stay_within_training_and_the_grammar(seed):
    scene = shapes.sample_scenes(1, seed)[0]
    rng = np.random.default_rng(seed)
    other = twin(scene, rng)
    kinds = [{thing.kind for thing in each.things} for each in (scene, other)]
    assert len(kinds[0]) == len(kinds[1])
    assert not any(shapes.held_out(a.kind, b.kind) for a, b in combinations(other.things, 2))
    for family in shapes.families(other):
        assert shapes.parse(shapes.caption(other, family, rng)).hold(other.things)


def test_parse_forgives_case_and_spaces_and_explains_the_rest():
    plain = shapes.parse("a red circle left of a blue square")
    assert shapes.parse("  A Red circle LEFT of  a blue square. ") == plain
    assert shapes.parse("a red circle , a blue square, and a green star").total == 3
    wrong = ["", "a dog", "two red circle", "a red circles", "a circle and a circle"]
    for prompt in [*wrong, "a star left of two stars"]:
        with pytest.raises(ValueError, match="the grammar has"):
            shapes.parse(prompt)


def test_statements_stand_in_order_with_the_total_last():
    things = [Thing("red", "circle", 0.3, 0.5, 0.1), Thing("blue", "star", 0.7, 0.5, 0.1)]
    claims = dict(shapes.parse("a red circle right of a blue square").check(things))
    assert list(claims) == ["a red circle", "a blue square", "right of", "2 objects"]
    assert list(claims.values()) == [True, False, False, True]
    few = shapes.parse("two red circles").check(things[:1])
    assert few == [("two red circles", False), ("2 objects", False)]


def test_prompts_repeat_and_the_parts_share_no_pair():
    assert shapes.prompts(n=50, seed=1) == shapes.prompts(n=50, seed=1)
    assert len(set(shapes.prompts())) == len(shapes.prompts()) == len(HELD_OUT) * 8
    assert len(shapes.prompts(n=1000)) == 1000

    def pairs(**options):
        claims = map(shapes.parse, shapes.prompts(**options))
        return {frozenset(map(str, claim.wants)) for claim in claims}

    assert not pairs(part="tune") & pairs(part="test")
    assert not pairs() & pairs(split="train")
    assert pairs(part="tune") == pairs(part="tune", family="attribution")
    with pytest.raises(ValueError, match="family"):
        shapes.prompts(family="colour")
