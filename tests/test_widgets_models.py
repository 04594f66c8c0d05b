"""The explorer on a joint transformer sampled as a flow, and two explorers of one model."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch

import datekit as dk
from datekit.widgets import Controller
from datekit.widgets.export import python


def played(controller):
    controller.play()
    return controller.finish()


@pytest.fixture(scope="module")
def flow():
    return dk.load(
        "shapes-flow", device="cpu", text_encoder_3=None, tokenizer_3=None
    )  # it has no T5, and diffusers wants that said


def test_a_joint_transformer_sampled_as_a_flow(flow, reward):
    """Pictures, charts, verdict, sweep and exported lines, as with a U-Net."""
    controller = Controller(flow, reward, num_steps=4, rho=2.0, when=dk.every(2))
    controller.scrub(2)
    controller.fork()
    controller.change(method="DATE + Universal Guidance", scale=4.0)
    played(controller).scrub(2)
    controller.sweep()
    frame, twin = controller.finish().frame(), controller.frame("fixed")
    prompt = controller.settings.prompt
    assert [word for word in frame.words if not word.startswith("<")] == prompt.split()
    assert sum(frame.shares) == pytest.approx(1)
    assert frame.scales["guidance"] > 0 == twin.scales["guidance"]
    assert frame.distance == pytest.approx(2.0, rel=1e-3)
    assert frame.statements == dk.shapes.judge([frame.pictures["decoded"]], [prompt])[0].statements
    steps, values = controller.cosines()
    assert values[steps.index(2)] == pytest.approx(1, abs=1e-5)
    run = (
        dk.Sampler(flow, dk.Fixed(), num_steps=4, guidance_scale=2.0)
        .start([prompt], seeds=[0])
        .finish()
    )
    assert torch.equal(controller.branch("fixed").state(4).xt, run.state.xt)
    found, look = controller.swept(), controller.branch().look(2, controller.reward)
    np.testing.assert_allclose(
        found.predicted[:, 0],
        [look.h.item() + rho * look.grad_norm.item() for rho in found.rhos.tolist()],
        rtol=1e-5,
    )
    names = {}
    exec(python(controller), names)
    assert names["image"].tobytes() == frame.pictures["decoded"].tobytes()
    assert names["fixed_image"].tobytes() == twin.pictures["decoded"].tobytes()


def test_what_a_model_cannot_do_is_said(flow, reward, target):
    for controller in (
        Controller(flow, reward, num_steps=4),
        Controller(dk.load("gaussian"), target, num_steps=4),
    ):
        for name in ("EBCA", "DATE + EBCA"):
            with pytest.raises(ValueError, match="cross-attention of a U-Net"):
                controller.change(method=name)
        assert controller.settings.method == "DATE"


class Watched(dk.GaussianBackbone):
    """The closed-form model, which notices when it is asked twice at once."""

    def __init__(self):
        super().__init__()
        self.asked, self.most, self.threads = 0, 0, set()

    def predict(self, xt, t, cond):
        """As the model's, with time for another thread to come in."""
        self.asked += 1
        self.most = max(self.most, self.asked)
        self.threads.add(threading.current_thread())  # the thread itself: an ident is given again
        time.sleep(0.001)
        try:
            return super().predict(xt, t, cond)
        finally:
            self.asked -= 1


def test_explorers_of_one_model_take_turns(target):
    """... since a method such as EBCA changes its layers while it looks."""
    backbone = Watched()
    explorers = [
        dk.explore(backbone, target, prompt="a red circle", num_steps=6, seed=seed)
        for seed in range(2)
    ]
    for explorer in explorers:
        explorer.wait(600)
        assert explorer.error.value == ""
        assert explorer.controller.done
    assert (backbone.most, len(backbone.threads)) == (1, 2)
