"""Pausing, looking, rewinding, forking, saving: nothing is lost and nothing changes."""

from __future__ import annotations

import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import datekit as dk
from datekit.types import StepInfo

STEPS, SEEDS = 8, [0, 1, 2]


KINDS = ("fixed", "date", "running", "random", "eta")


def sampler_of(kind, shapes, reward):
    method = {
        "fixed": dk.Fixed(),
        "date": dk.DATE(reward, rho=1.0, when=dk.every(2)),
        "random": dk.RandomDirection(1.0),
        "running": dk.DATE(reward, rho=0.3, anchor="running"),
        "eta": dk.DATE(reward, rho=1.0),
    }[kind]
    return dk.Sampler(shapes, method, num_steps=STEPS, eta=1.0 if kind == "eta" else 0.0)


@pytest.fixture(params=KINDS)
def sampler(request, shapes, reward):
    return sampler_of(request.param, shapes, reward)


def same(a, b) -> bool:
    """Whether two states agree to the bit."""
    return torch.equal(a.xt, b.xt) and torch.equal(a.c, b.c) and a.i == b.i and a.t == b.t


def all_same(run, other) -> bool:
    """Whether all states of two runs do."""
    return all(same(a, b) for a, b in zip(run.states, other.states, strict=True))


def test_step_is_pure_and_every_sampler_has_one_signature(sampler, prompts):
    state = sampler.init(prompts, seeds=SEEDS)
    xt, c = state.xt.clone(), state.c.clone()
    (one, info), (two, _) = sampler.step(state), sampler.step(state)
    assert same(one, two)
    assert torch.equal(state.xt, xt)
    assert torch.equal(state.c, c)
    assert (state.i, one.i) == (0, 1)
    assert isinstance(info, StepInfo)
    for name in ("x0bar", "x0bar_hat", "xt", "eps_c", "eps_u"):
        assert getattr(info, name).shape == state.xt.shape
    assert torch.equal(info.c, one.c)
    if sampler.method.reward is not None:
        assert info.grad.shape == info.direction.shape == state.c.shape
        h = sampler.method.reward(sampler.backbone.decode(info.x0bar), prompts)
        torch.testing.assert_close(info.h, h)


@pytest.mark.parametrize("sampler", ["running", "eta"], indirect=True)
def test_looking_never_advances(sampler, prompts, reward):
    looked, plain = (sampler.start(prompts, seeds=SEEDS) for _ in range(2))
    for _ in range(STEPS):
        before = looked.state
        looked.peek(), looked.peek(reward), sampler.predict(before), looked.pixels, looked.history
        assert looked.state is before
        looked.step(), plain.step()
        assert same(looked.state, plain.state)


@pytest.mark.parametrize("anchor", ["original", "running", "reset"])
def test_peek_is_what_the_step_then_does(shapes, reward, prompts, anchor):
    sampler = dk.Sampler(shapes, dk.DATE(reward, rho=1.0, anchor=anchor), num_steps=STEPS)
    run = sampler.start(prompts, seeds=SEEDS)
    run.step(3)
    base = run.state.c if anchor == "running" else run.state.c_org
    look, info = run.peek(), run.step()
    for name in ("x0bar", "h", "grad_x0bar", "grad", "direction"):
        assert torch.equal(getattr(look, name), getattr(info, name))
    assert torch.equal(info.at, look.c)
    torch.testing.assert_close(info.c, base + look.direction, rtol=1e-6, atol=1e-6)


@settings(max_examples=8)
@given(to=st.integers(0, STEPS - 1), seed=st.integers(0, 2**62))
def test_rewound_and_stepped_again_is_the_same(random_backbone, brightness, prompts, to, seed):
    method = dk.DATE(brightness, rho=0.5, when=dk.every(2), anchor="running")
    sampler = dk.Sampler(random_backbone, method, num_steps=STEPS, eta=0.5)
    run = sampler.start(prompts[:2], seeds=[seed, 0]).finish()
    first = run.states
    run.rewind(to=to)
    assert run.state is first[to]
    assert len(run.history) == to
    run.finish()
    assert all(same(a, b) for a, b in zip(first, run.states, strict=True))


def test_a_fork_does_not_disturb_its_parent(sampler, prompts):
    whole, parent = (
        sampler.start(prompts, seeds=SEEDS).finish(),
        sampler.start(prompts, seeds=SEEDS),
    )
    parent.step(3)
    child = parent.fork(dk.Fixed())
    grandchild = child.fork(at=1, guidance_scale=1.0)
    child.finish(), grandchild.finish()
    assert parent.state.i == 3
    assert same(child.states[3], parent.states[3])
    assert all_same(whole, parent.finish())
    assert torch.equal(child.state.c, child.state.c_org)
    assert same(grandchild.states[1], parent.states[1])
    assert not torch.equal(grandchild.states[2].xt, parent.states[2].xt)


def test_a_prompts_image_does_not_depend_on_its_batch(sampler, prompts):
    """But for rounding, which differs with the batch and the processor, and which steps amplify."""
    together = sampler.start(prompts, seeds=SEEDS).finish()
    for n, prompt in enumerate(prompts):
        alone = sampler.start([prompt], seeds=[n]).finish()
        assert (alone.pixels[0] - together.pixels[n]).abs().max() <= 1e-3
        assert (alone.state.xt[0] - together.state.xt[n]).abs().max() <= 1e-2


@pytest.mark.parametrize("sampler", ["eta"], indirect=True)
def test_iterating_pauses_and_goes_on(sampler, prompts):
    run, whole = (sampler.start(prompts, seeds=SEEDS) for _ in range(2))
    for info in run:
        if info.i == 2:
            break
    assert run.state.i == 3
    assert not run.done
    assert [info.i for info in run] == list(range(3, STEPS))
    assert run.done
    assert same(run.state, whole.finish().state)
    for ask in (run.step, run.peek):
        with pytest.raises(RuntimeError, match=r"nothing is left.*rewind"):
            ask()


RESUME = """
import sys, datekit as dk
for path in sys.argv[1:]:
    dk.Run.load(path).finish().save(path)
"""


def test_saved_and_resumed_in_a_new_process_is_uninterrupted(shapes, reward, prompts, tmp_path):
    wholes = {}
    for kind in KINDS:
        wholes[kind] = sampler_of(kind, shapes, reward).start(prompts, seeds=SEEDS)
        wholes[kind].step(3)
        wholes[kind].save(tmp_path / f"{kind}.pt")
    paths = [tmp_path / f"{kind}.pt" for kind in KINDS]
    subprocess.run([sys.executable, "-c", RESUME, *paths], check=True)
    names = ("x0bar", "x0bar_hat", "c", "at", "eps_c", "eps_u", "h", "grad", "distance")
    for kind, path in zip(KINDS, paths, strict=True):
        whole, resumed = wholes[kind].finish(), dk.Run.load(path)
        assert all_same(whole, resumed)
        assert repr(resumed.sampler) == repr(whole.sampler)
        for a, b in zip(whole.history, resumed.history, strict=True):
            assert a.updated == b.updated
            for name in names:
                one, two = getattr(a, name), getattr(b, name)
                assert (one is None and two is None) or torch.equal(one, two), name
    assert not list(tmp_path.glob("*.partial"))


def test_loading_with_and_without_a_sampler(random_backbone, brightness, prompts, tmp_path):
    sampler = dk.Sampler(random_backbone, dk.DATE(brightness, rho=0.5), num_steps=4)
    run = sampler.start(prompts, seeds=SEEDS)
    run.step(2)
    path = run.save(tmp_path / "run.pt")
    assert same(dk.Run.load(path, sampler).finish().state, run.finish().state)
    with pytest.raises(ValueError, match=r"Run\.load\(path, sampler\)"):
        dk.Run.load(path)
    with pytest.raises(ValueError, match=r"rho was 0\.5, now 0\.7"):
        dk.Run.load(path, sampler.replace(method=dk.DATE(brightness, rho=0.7)))
    (tmp_path / "other.pt").write_bytes(b"not a run")
    with pytest.raises(ValueError, match="no run saved by datekit"):
        dk.Run.load(tmp_path / "other.pt", sampler)
    with pytest.raises(FileNotFoundError):
        dk.Run.load(tmp_path / "none.pt", sampler)


def test_settings_survive_the_file(shapes, reward, prompts, tmp_path):
    both = 0.5 * reward + 2 * dk.rewards.load("shapes-clip-heldout")
    update = {"anchor": "reset", "between": "revert", "inner_steps": 2}
    method = dk.DATE(both, rho=1.5, when=dk.steps(1, 2), **update)
    sampler = dk.Sampler(shapes, method, num_steps=3, guidance_scale=2.0, eta=0.25)
    run = sampler.start(prompts, seeds=SEEDS)
    loaded = dk.Run.load(run.save(tmp_path / "run.pt"))
    assert repr(loaded.sampler) == repr(sampler)
    assert same(loaded.finish().state, run.finish().state)


def test_an_interrupt_leaves_the_run_paused(shapes, reward, prompts):
    calls = []

    def interrupted(images, texts):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return reward(images, texts)

    def start(h):
        sampler = dk.Sampler(shapes, dk.DATE(h, rho=1.0), num_steps=STEPS)
        return sampler.start(prompts, seeds=SEEDS)

    run = start(interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.finish()
    assert run.state.i == len(run.history) == 3
    assert same(run.finish().state, start(reward).finish().state)


@pytest.mark.parametrize("sampler", ["date"], indirect=True)
def test_pictures_and_reprs(sampler, prompts):
    run = sampler.start(prompts, seeds=SEEDS)
    before = run.images
    run.step(4)
    html = run._repr_html_() + run.history[-1]._repr_html_() + run.peek()._repr_html_()
    assert html.count("<img") == 9
    assert all(prompt in html for prompt in prompts)
    assert "tensor(" not in html
    assert "paused before step 4" in html
    run.finish()
    assert [image.size for image in run.images] == [(64, 64)] * 3
    assert before[0].tobytes() != run.images[0].tobytes()
    assert "finished" in repr(run)
    assert len(repr(run.history[0])) < 200


def test_history(shapes, reward, prompts):
    sampler = dk.Sampler(shapes, dk.DATE(reward, rho=1.0, when=dk.every(2)), num_steps=STEPS)
    run = sampler.start(prompts, seeds=SEEDS).finish()
    cosine = run.history.cosine("direction")
    torch.testing.assert_close(cosine.diagonal(), torch.ones(4, dtype=torch.float64))
    a, b = (run.history[i].direction.flatten(1).double() for i in (0, 6))
    torch.testing.assert_close(cosine[0, 3], torch.cosine_similarity(a, b).mean())
    assert run.history.stack("x0bar").shape == (STEPS, 3, 4, 16, 16)
    h = reward(shapes.decode(run.history[5].x0bar_hat), prompts)
    torch.testing.assert_close(run.rewards()[5], h)
    fixed = run.fork(dk.Fixed(), at=0).finish()
    with pytest.raises(ValueError, match="no step so far recorded 'direction'"):
        fixed.history.cosine()
    with pytest.raises(TypeError, match="got None"):
        fixed.rewards()


@pytest.mark.parametrize(("source", "settings"), [
    ("somebody/model", {}), (".", {}), ("gaussian", {"custom_pipeline": "somebody/code"}),
    ("shapes", {"trust_remote_code": True}), ("shapes", ["custom_pipeline"]),
])  # fmt: skip
def test_a_file_alone_loads_what_comes_along_and_no_code(
    prompts, tmp_path, monkeypatch, source, settings
):
    monkeypatch.setattr("datekit.serialize.load", None)
    run = dk.Sampler(dk.load("gaussian"), num_steps=2).start(prompts, seeds=SEEDS)
    content = torch.load(run.save(tmp_path / "run.pt"), weights_only=True)
    content["sampler"]["backbone"] |= {"backbone": source, "settings": settings}
    torch.save(content, tmp_path / "run.pt")
    with pytest.raises(ValueError, match="a file alone does not load"):
        dk.Run.load(tmp_path / "run.pt")


@pytest.mark.parametrize("changes", [
    {"model": "/somewhere/model", "tag": "shapes-clip"}, {"tag": "/somewhere/weights.pt"},
    {"model": "/somewhere/model", "interpolation": "shapes-clip"}, {"model": "somebody/model"},
])  # fmt: skip
def test_a_file_alone_loads_no_other_weights_of_a_reward(prompts, tmp_path, monkeypatch, changes):
    """Wherever in it a shipped name stands."""
    reward, asked = dk.rewards.load("shapes-clip"), []
    run = dk.Sampler(dk.load("shapes"), dk.DATE(reward), num_steps=2).start(prompts, seeds=SEEDS)
    content = torch.load(run.save(tmp_path / "run.pt"), weights_only=True)
    content["sampler"]["method"]["reward"] |= changes
    torch.save(content, tmp_path / "run.pt")
    monkeypatch.setattr("datekit.rewards.clip_score.towers", lambda *given: asked.append(given))
    with pytest.raises(ValueError, match="a file alone does not load the weights of a CLIPScore"):
        dk.Run.load(tmp_path / "run.pt")
    assert asked == []


@pytest.mark.parametrize("change", [
    lambda run: run.pop("sampler"), lambda run: run.pop("past"), lambda run: run.update(start=[1]),
    lambda run: run["start"].update(record="os"), lambda run: run["start"].pop("cond"),
    lambda run: run.update(past=[(run["start"], run["start"])]),
    lambda run: run["start"].update(xt=torch.zeros(2, 9, 4, 4)),
    lambda run: run["past"][-1][1].update(solver_state="xx"),
    lambda run: run["past"][-1][1].update(xt=None), lambda run: run["past"][-1][1].update(i=1.5),
    lambda run: run["past"][-1][1]["cond_org"].update(mask="xx"),
    lambda run: run["past"][-1][1]["uncond"].update(extras={"a": 1}),
    lambda run: run["sampler"].pop("backbone"), lambda run: run["sampler"].update(system="ls"),
])  # fmt: skip
def test_a_file_that_was_changed_is_named(prompts, tmp_path, change):
    path = tmp_path / "run.pt"
    run = dk.Sampler(dk.load("gaussian"), num_steps=2).start(prompts, seeds=SEEDS)
    run.step()
    content = torch.load(run.save(path), weights_only=True)
    change(content)
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"run\.pt is damaged or was changed"):
        dk.Run.load(path)


def test_a_damaged_file_gives_no_other_numbers(prompts, tmp_path):
    """One bit anywhere: the same run, or an error that names the file. One that is packed is none.

    A small file can unpack to more than there is memory.
    """
    path, sampler = tmp_path / "run.pt", dk.Sampler(dk.load("gaussian"), num_steps=2)
    run = sampler.start(prompts, seeds=SEEDS)
    data = run.save(path).read_bytes()
    xt = data.index(run.state.xt.numpy().tobytes())
    spread = np.random.default_rng(0).integers(len(data), size=100)
    for place in (xt, xt + 100, *spread.tolist()):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        try:
            assert torch.equal(dk.Run.load(path, sampler).state.xt, run.state.xt)
        except ValueError as error:
            assert "run.pt" in str(error)  # noqa: PT017
            continue
        assert place not in (xt, xt + 100)
    whole = run.save(tmp_path / "whole.pt")
    with zipfile.ZipFile(whole) as file, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in file.namelist():
            packed.writestr(name, file.read(name))
    with pytest.raises(ValueError, match="packed or damaged"):
        dk.Run.load(path)
