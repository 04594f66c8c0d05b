"""A method, a reward and a backbone of a user's own:

one new file each, and everything knows them.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass

import pytest
import torch

import datekit as dk
from datekit import registry
from datekit.cli import build_parser, sampler_from
from datekit.serialize import describe
from datekit.widgets.controller import Controller
from datekit.widgets.export import python
from datekit.widgets.settings import method_names

FILES = {
    "nudge": '''
from dataclasses import dataclass
from datekit.methods.base import MethodUpdate, Method
from datekit.registry import option

@dataclass(frozen=True)
class Nudge(Method):
    """Adds the same number to every entry of c_org."""
    size: float = option(0.25, help="What is added.", label="size of the nudge", range=(0.0, 1.0))

    def condition(self, denoiser, state):
        denoiser.extras["nudge"] = torch.full((len(state),), self.size)
        moved = state.cond_org.replace(sequence=state.c_org + self.size)
        steps = state.extras.get("steps", torch.zeros(len(state)))
        return MethodUpdate(moved, moved=True, carry={"steps": steps + 1})

import torch
''',
    "redness": '''
from dataclasses import dataclass
from datekit.registry import option
from datekit.rewards import Reward

@dataclass(frozen=True, repr=False)
class Redness(Reward):
    """How much more red than blue there is."""
    gain: float = option(1.0, help="A factor.", range=(0.0, 2.0))
    name = "redness"

    def forward(self, images, prompts):
        return self.gain * (images[:, 0] - images[:, 2]).mean((1, 2))
''',
    "tinted": '''
from datekit.backbones import GaussianBackbone

class Tinted(GaussianBackbone):
    """The closed-form model with other parameters."""
    models = {"tinted": {"components": 2, "seed": 5}}
''',
}


@pytest.fixture(scope="module", autouse=True)
def files(tmp_path_factory):
    """The three files, imported; what they registered is taken out again."""
    for name, text in FILES.items():
        path = tmp_path_factory.mktemp("own") / f"{name}.py"
        path.write_text(f'"""A file of a user."""{text}')
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    yield
    for known in registry.ENTRIES.values():
        for name in [name for name, cls in known.items() if cls.__module__ in FILES]:
            del known[name]
    for name in FILES:
        del sys.modules[name]


def run_of(words: str):
    """What `datekit generate` would sample for these words."""
    options = build_parser().parse_args(
        ["generate", "--out", "none", "--prompts", "-", *words.split()]
    )
    return sampler_from(options)


def test_a_method_is_one_file(tmp_path):
    sampler = run_of("--model tinted --method Nudge --size 0.5 --steps 4")
    assert (sampler.method.size, sampler.backbone.components) == (0.5, 2)
    run = sampler.start(["a red circle"], seeds=[0])
    info = run.step(2)
    assert info.extras["nudge"].tolist() == [0.5]
    torch.testing.assert_close(info.c, run.state.c_org + 0.5)
    assert run.state.extras["steps"].tolist() == [2.0]
    loaded = dk.Run.load(run.save(tmp_path / "run.pt"))
    assert loaded.sampler.method == sampler.method
    assert torch.equal(loaded.finish().state.xt, run.finish().state.xt)


def test_a_reward_is_one_file(tmp_path):
    sampler = run_of("--model tinted --method DATE --reward Redness --rho 0.3 --steps 4")
    run = sampler.start(["a red circle"], seeds=[0])
    info = run.step()
    torch.testing.assert_close(info.distance, torch.full((1,), 0.3, dtype=torch.float64))
    assert dk.Run.load(run.save(tmp_path / "run.pt")).sampler.method.reward.gain == 1.0


def test_the_explorer_offers_what_the_files_say():
    redness = registry.find("reward", "Redness")(2.0)
    controller = Controller(dk.load("tinted"), redness, method="Nudge", num_steps=3)
    assert "Nudge" in method_names(controller.settings)
    assert controller.settings.fields["size"].metadata["range"] == (0.0, 1.0)
    controller.change(size=0.75)
    controller.finish()
    assert controller.run().history[2].extras["nudge"].tolist() == [0.75]
    assert controller.frame().updated
    exec(python(controller), namespace := {})
    assert namespace["image"].tobytes() == controller.frame().picture.tobytes()


def test_a_name_belongs_to_one_class():
    def define(module):
        return type("Nudge", (dk.Method,), {"__module__": module, "__qualname__": "Nudge"})

    with pytest.raises(TypeError, match="there is a method Nudge already, in nudge"):
        define("elsewhere")
    again = define("nudge")  # as a cell of a notebook that runs twice
    assert registry.find("method", "Nudge") is again


def test_a_class_made_by_an_init_of_its_own_is_not_its_parent():
    class Blueness(registry.find("reward", "Redness")):
        def __init__(self, threshold):
            super().__init__(-1.0)
            object.__setattr__(self, "threshold", threshold)

    assert describe(Blueness(0.5))["opaque"] == "redness"
    assert describe(Blueness(0.5)) != describe(Blueness(0.6))
    del registry.ENTRIES["reward"]["Blueness"]


def test_an_option_has_the_range_that_it_says_and_a_reward_may_be_none():
    @dataclass(frozen=True)
    class _Shift(dk.Method):
        reward: object = registry.option(None, help="What says which way.")
        size: float = registry.option(-0.5, help="How far.", range=(-1.0, 1.0))

    assert _Shift(size=-1).size == -1
    with pytest.raises(ValueError, match="size must be a finite number from -1 up"):
        _Shift(size=-2.0)
