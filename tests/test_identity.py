"""What a run was made with is told from anything that would make another, in every process."""

from __future__ import annotations

import copy
import functools
import pickle
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

import datekit as dk
from datekit.rewards import PerConcept, Reward
from datekit.serialize import describe


def using(w):
    """A reward that uses what is outside of it: a number, a container, an object, a function."""
    return lambda images, prompts: w * images.mean((1, 2, 3))


def through_another(w):
    def inner(images):
        return w * images

    return lambda images, prompts: inner(images).mean((1, 2, 3))


def by_default(w):
    def reward(images, prompts, *, by=w):
        return by * images.mean((1, 2, 3))

    return reward


def in_a_class(w):
    """Each time another class of one name."""

    class Mine(Reward):
        name = "mine"

        def forward(self, images, prompts):
            return images.mean((1, 2, 3)) if w == 1 else images.amax((1, 2, 3))

    return Mine()


def redefined(w):
    """A class that is made of options, as somebody defines it twice in a notebook."""
    code = {1: lambda self, i, n: i == 0, 2: lambda self, i, n: i == 1}[w]
    return type("Mine", (dk.schedules.every,), {"__call__": code, "__module__": "__main__"})()


def under(part, **names):
    """What a text defines as `part` where a module of somebody's own has these names."""
    space = {"__name__": "__main__", "Reward": Reward, "torch": torch, "dk": dk} | names
    exec(TEXTS[part], space)
    return space["made"]


TEXTS = {  # what stands in a file of somebody's own, beside w
    "comprehension": """
def made(images, prompts):
    return torch.stack([w * image.mean() for image in images])
""",
    "nested global": """
def made(images, prompts):
    return torch.stack(list(map(lambda image: w * image.mean(), images)))
""",
    "module": """
made = lambda images, prompts: own.deep.w * images.mean((1, 2, 3))
""",
    "class attribute": """
class Own(Reward):
    scale = w
    def forward(self, images, prompts):
        return self.scale * images.mean((1, 2, 3))
made = Own()
""",
    "base class": """
class Base:
    def scale(self):
        return w
class Own(Base):
    def __call__(self, images, prompts):
        return self.scale() * images.mean((1, 2, 3))
made = Own()
""",
    "slots": """
class Own:
    __slots__ = ("scale",)
    def __init__(self):
        self.scale = w
    def __call__(self, images, prompts):
        return self.scale * images.mean((1, 2, 3))
made = Own()
""",
    "schedule": """
class Own(dk.schedules.Schedule):
    @property
    def nth(self):
        return w
    def __call__(self, i, num_steps):
        return i % self.nth == 0
made = Own()
""",
}
for kind in ("staticmethod", "classmethod", "property"):
    TEXTS[kind] = f"""
class Own(Reward):
    @{kind}
    def scale({"*_" if kind == "staticmethod" else "own"}):
        return w
    def forward(self, images, prompts):
        return images.mean((1, 2, 3)) * self.scale{"" if kind == "property" else "()"}
made = Own()
"""


def own_module(w):
    """Somebody's own package with a number in a module of it."""
    own, deep = types.ModuleType("own"), types.ModuleType("own.deep")
    own.deep, deep.w = deep, w
    return own


def hooked(w):
    layer = torch.nn.Linear(2, 2)
    layer.weight.data, layer.bias.data = torch.eye(2), torch.zeros(2)
    layer.register_forward_hook(lambda module, args, out: w * out)
    return layer


def permuted(w):
    layer = weights(1.0)
    layer.weight.data = torch.arange(32.0).view(2, 16).roll(w, 1)
    return layer


class Holder:
    """Somebody's own object; it may hold itself."""

    def __init__(self, w):
        self.w, self.me = w, self

    def __call__(self, images, prompts):
        return self.w * images.mean((1, 2, 3))


def weights(w):
    layer = torch.nn.Linear(2, 2, bias=False)
    layer.weight.data.fill_(w)
    return layer


MADE = {
    "number": using,
    "tuple": lambda w: using((w,)),
    "list": lambda w: using([{"a": w}]),
    "array": lambda w: using(np.array([w])),
    "tensor": lambda w: using(torch.tensor([w])),
    "network": lambda w: using(weights(w)),
    "function": lambda w: using(using(w)),
    "object": lambda w: using(Holder(w)),
    "reward": lambda w: using(dk.rewards.TargetReward(width=w)),
    "backbone": lambda w: using(dk.load("gaussian", seed=w)),
    "nested": through_another,
    "default": by_default,
    "partial": lambda w: functools.partial(using(1), w),
    "method": lambda w: Holder(w).__call__,
    "attribute": Holder,
    "class": in_a_class,
    "options": redefined,
    "library's object": lambda w: using(types.SimpleNamespace(w=w)),
    "picture": lambda w: using(Image.new("RGB", (2, 2), (w, 0, 0))),
    "dropout": lambda w: using(torch.nn.Sequential(torch.nn.Dropout(w / 10))),
    "hook": lambda w: using(hooked(w)),
    "columns": lambda w: using(permuted(w)),
    "split": lambda w: PerConcept(using(1), lambda prompt: prompt.split(",", w)),
}


def changed_reward(w):
    """A named reward whose weights are others."""
    reward = dk.rewards.load("shapes-clip", device="cpu")
    next(reward.network.parameters()).data.mul_(w)
    return reward


def changed_pipe(change):
    """A named model with a change in the pipeline beside its networks' weights."""

    def make(w):
        backbone = copy.deepcopy(dk.load("shapes", device="cpu"))
        change(backbone.pipe, w)
        return backbone

    return make


def another_function(part, name):
    return lambda pipe, w: setattr(part(pipe), name, lambda *given, **named: w)


MADE["a reward's weights"] = changed_reward
MADE["what a tokenizer cuts"] = changed_pipe(
    lambda pipe, w: setattr(pipe.tokenizer, "model_max_length", 8 * w)
)
MADE["a pipeline's setting"] = changed_pipe(
    lambda pipe, w: pipe.register_to_config(requires_safety_checker=w == 1)
)
MADE["a pipeline's function"] = changed_pipe(another_function(lambda pipe: pipe, "encode_prompt"))
MADE["an encoder's function"] = changed_pipe(
    another_function(lambda pipe: pipe.text_encoder, "forward")
)
MADE |= {part: functools.partial(lambda part, w: under(part, w=w), part) for part in TEXTS}
MADE["module"] = lambda w: under("module", own=own_module(w))


@pytest.mark.parametrize("kind", MADE)
def test_two_are_told_apart_and_one_is_itself(kind):
    one, other = MADE[kind](1), MADE[kind](2)
    assert describe(one) == describe(MADE[kind](1))
    assert describe(one) != describe(other)


def test_another_process_tells_the_same():
    """Sets have another order there, and objects stand elsewhere."""
    kinds = ["tuple", "list", "array", "nested", "method", "object", "class", "reward"]
    kinds += [*TEXTS, "hook", "dropout", "columns"]
    code = f"import test_identity as t; print([t.describe(t.MADE[k](2)) for k in {kinds}])"
    path = f"import sys; sys.path[:0] = {sys.path!r}"
    given = {"env": {"PYTHONHASHSEED": "7"}, "text": True, "check": True, "stdout": subprocess.PIPE}
    out = subprocess.run([sys.executable, "-W", "ignore", "-c", f"{path}; {code}"], **given).stdout
    assert out.strip() == str([describe(MADE[kind](2)) for kind in kinds])


def passed_on(value):
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, passed_on])
def test_what_a_user_holds_is_copied(random_backbone, brightness, again):
    """Copies, and runs of copied parts, go on alone and to the same bits."""
    sampler = dk.Sampler(random_backbone, dk.DATE(brightness), num_steps=3)
    run = sampler.start("a star", seeds=[0])
    first = run.step()
    end = run.fork().finish().state.xt
    for other in (
        again(run),
        dk.Run(again(sampler), again(run.state)),
        dk.Run(sampler.replace(backbone=again(random_backbone)), run.state),
        dk.Run(sampler.replace(method=again(sampler.method)), run.state),
        dk.Run(sampler.replace(method=dk.DATE(again(brightness))), run.state),
        dk.Run(sampler, run.state.replace(cond=again(run.state.cond))),
    ):
        assert torch.equal(other.finish().state.xt, end)
        assert len(run.history) == 1
    assert torch.equal(again(run.history)[0].direction, first.direction)
