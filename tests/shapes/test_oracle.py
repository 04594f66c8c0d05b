"""The judge is right on what the renderer draws, and strict on what it does not."""

import numpy as np
import pytest
import torch
from PIL import Image
from studies.training.negatives import hard_negatives

from datekit import shapes
from datekit.shapes.world import Scene, Thing


@pytest.fixture(scope="module")
def rendered():
    scenes = shapes.sample_scenes(1500, seed=11) + shapes.sample_scenes(500, 12, "heldout")
    rng = np.random.default_rng(0)
    texts = [shapes.caption(each, rng.choice(shapes.families(each)), rng) for each in scenes]
    return scenes, texts, shapes.render(scenes)


@pytest.mark.parametrize("noise", [0.0, 0.03])
def test_true_captions_are_found_true(rendered, noise):
    _, texts, images = rendered
    spoilt = images + noise * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    assert np.mean([verdict.right for verdict in shapes.judge(spoilt, texts)]) >= 0.98


def test_false_captions_are_found_false(rendered):
    scenes, texts, images = rendered
    rng = np.random.default_rng(1)
    pairs = zip(texts[:600], scenes[:600])
    false = [hard_negatives(text, scene.things, 1, rng)[0] for text, scene in pairs]
    assert np.mean([verdict.right for verdict in shapes.judge(images[:600], false)]) <= 0.02


def test_things_are_found_where_they_are(rendered):
    scenes, _, images = rendered
    for scene, image in zip(scenes[:100], images[:100]):
        found = shapes.detect(image)
        assert len(found) == len(scene.things)
        for thing in scene.things:
            near = min(found, key=lambda t: abs(t.x - thing.x) + abs(t.y - thing.y))
            assert near.kind == thing.kind
            place = thing.x, thing.y, thing.size
            assert (near.x, near.y, near.size) == pytest.approx(place, abs=0.01)


def test_tensors_arrays_and_pictures_are_judged_alike(rendered):
    scenes, texts, images = rendered
    arrays = (images[:20].permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8)
    pictures = [Image.fromarray(array) for array in arrays]
    for kind in (images[:20], arrays, pictures, shapes.render(scenes[:20], resolution=128)):
        assert all(verdict.right for verdict in shapes.judge(kind, texts[:20]))
    assert shapes.detect(pictures[0]) == shapes.detect(arrays[0])


def test_what_is_no_shape_counts_but_is_nothing():
    things = Thing("red", "circle", 0.3, 0.5, 0.15), Thing("blue", "square", 0.7, 0.5, 0.15)
    two = shapes.render([Scene(things)])[0]
    smear = two.clone()
    smear[:, 30:34, 8:26] = two[:, 32, 32, None, None]  # a bar of ground through the circle
    assert shapes.judge(two, ["a red circle left of a blue square"])[0].right
    statements = shapes.judge(smear, ["a red circle and a blue square"])[0].statements
    assert dict(statements)["a red circle"] is False
    grey = two.clone()
    grey[:, :, :32] = grey[:, :, :32].mean(0, keepdim=True)
    assert {thing.colour for thing in shapes.detect(grey)} == {"unknown", "blue"}
    assert shapes.detect(torch.ones(3, 64, 64)) == []
    with pytest.raises(ValueError, match="2 images for 1 prompts"):
        shapes.judge(torch.ones(2, 3, 64, 64), ["a circle"])
