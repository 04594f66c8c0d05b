"""What a user gets wrong gets an error that says what to do, before any sampling starts."""

from __future__ import annotations

import pytest
import torch

import datekit as dk


@pytest.fixture
def sampler(random_backbone):
    return dk.Sampler(random_backbone, num_steps=4, guidance_scale=3.0)


def latents(*shape, value=0.0):
    return {"prompts": ["a"], "latents": torch.full(shape, value)}


@pytest.mark.parametrize(("given", "error", "says"), [
    ({"prompts": []}, ValueError, "no prompts"),
    ({"prompts": [3]}, TypeError, "a prompt is a string"),
    ({"prompts": ["a", "b"], "seeds": [1]}, ValueError, "2 prompts need 2 seeds, got 1"),
    ({"prompts": ["a"], "seeds": [-1]}, ValueError, "a seed must be a whole number"),
    ({"prompts": ["a"], "seeds": [1.5]}, ValueError, "a seed must be a whole number"),
    (latents(2, 4, 16, 16), ValueError, r"shape \(1, 4, 16, 16\), got \(2, 4, 16, 16\)"),
    (latents(1, 3, 16, 16), ValueError, "latents must be a tensor of shape"),
    (latents(1, 4, 16, 16, value=torch.nan), ValueError, "NaN"),
    ({"prompts": ["a"], "latents": "noise"}, ValueError, "got str"),
    ({"prompts": ["a"], "negative_prompts": ["x", "y"]}, ValueError, "1 prompts need 1 negative"),
    ({"prompts": ["a"], "height": 30}, ValueError, "height must be a positive multiple of 8"),
    ({"prompts": ["a"], "width": -64}, ValueError, "width must be a positive multiple of 8"),
])  # fmt: skip
def test_start(sampler, monkeypatch, given, error, says):
    """Nothing is computed before."""
    for name in ("predict", "encode", "decode"):
        monkeypatch.setattr(sampler.backbone, name, None)
    with pytest.raises(error, match=says):
        sampler.start(**given)


@pytest.mark.parametrize(("given", "error", "says"), [
    ({"num_steps": 0}, ValueError, "num_steps must be a whole number from 1 to 100000"),
    ({"num_steps": 10**9}, ValueError, "num_steps must be a whole number from 1 to 100000"),
    ({"num_steps": True}, ValueError, "num_steps"),
    ({"num_steps": 2.5}, ValueError, "num_steps"),
    ({"num_steps": 1000}, ValueError, "visits timestep 1000, but the model ends at 999"),
    ({"guidance_scale": float("nan")}, ValueError, "guidance_scale must be a finite number"),
    ({"solver": "ddmi"}, ValueError, "Did you mean"),
    ({"solver": 3}, TypeError, "not a solver here"),
    ({"eta": 2.0}, ValueError, "eta must lie between 0"),
    ({"micro_batch": 0}, ValueError, "micro_batch must be"),
    ({"decode_batch": -1}, ValueError, "decode_batch must be"),
    ({"method": "date"}, TypeError, "method must be a method"),
    ({"steps": 20}, TypeError, "unexpected keyword argument 'steps'"),
])  # fmt: skip
def test_sampler(random_backbone, given, error, says):
    with pytest.raises(error, match=says):
        dk.Sampler(random_backbone, **given)


@pytest.mark.parametrize(("given", "error", "says"), [
    ({"rho": -1}, ValueError, "rho must be a finite number from 0 up"),
    ({"rho": float("inf")}, ValueError, "rho must be"),
    ({"rho": "big"}, ValueError, "rho must be"),
    ({"anchor": "orignal"}, ValueError, "Did you mean 'original'"),
    ({"between": "hold on"}, ValueError, "Did you mean 'hold'"),
    ({"inner_steps": 0}, ValueError, "inner_steps must be"),
    ({"inner_steps": 3}, ValueError, "take anchor='running'"),
    ({"when": "always"}, TypeError, r"dk\.every\(5\)"),
    ({"reward": 3}, TypeError, "reward must be callable"),
])  # fmt: skip
def test_date(brightness, given, error, says):
    with pytest.raises(error, match=says):
        dk.DATE(**({"reward": brightness} | given))


@pytest.mark.parametrize(("make", "settings"), [
    (dk.UniversalGuidance, {"scale": torch.nan}), (dk.UniversalGuidance, {"backward_steps": 1.5}),
    (dk.UniversalGuidance, {"backward_rate": "big"}), (dk.UniversalGuidance, {"recurrence": 0}),
    (dk.EBCA, {"gamma_attn": -0.1}), (dk.EBCA, {"gamma_norm": float("inf")}),
    (dk.LiDAR, {"samples": 0}), (dk.methods.rho_rules.Taylor, {"tolerance": 0}),
    (dk.methods.rho_rules.Taylor, {"trial": float("nan")}),
])  # fmt: skip
def test_numbers_of_methods(brightness, make, settings):
    (name,) = settings
    needed = {"reward": brightness} if make in (dk.UniversalGuidance, dk.LiDAR) else {}
    with pytest.raises(ValueError, match=f"{name} must be"):
        make(**needed, **settings)


def test_schedules(random_backbone, brightness):
    with pytest.raises(ValueError, match="names step 9, but a run of 5 steps ends with 4"):
        dk.Sampler(random_backbone, dk.DATE(brightness, when=dk.steps(2, 9)), num_steps=5)
    for make, wrong in ((dk.every, 0), (dk.every, 1.5), (dk.fraction, 1.5), (dk.fraction, "1")):
        with pytest.raises(ValueError, match=make.__name__):
            make(wrong)
    for wrong in ([], [-1]):
        with pytest.raises(ValueError, match="steps"):
            dk.steps(*wrong)


def test_unknown_names():
    for load, name, says in (
        (dk.load, "shape", "Did you mean 'shapes'"),
        (dk.load, "./no/such/folder", "hub id 'owner/name'"),
        (dk.rewards.load, "shapes-clp", "Did you mean 'shapes-clip'"),
    ):
        with pytest.raises(ValueError, match=says):
            load(name)
    for load, given, says in (
        (dk.load, lambda: None, "dk.wrap takes a loaded pipeline"),
        (dk.wrap, "shapes", r"dk.load\('shapes'\) loads one"),
    ):
        with pytest.raises(TypeError, match=says):
            load(given)
    with pytest.raises(AttributeError, match="no attribute 'sampel'"):
        dk.sampel  # noqa: B018


def test_unsupported_pipeline():
    class AudioLDMPipeline:
        pass

    says = r"AudioLDMPipeline is not a pipeline.*StableDiffusionPipeline.*Backbone"
    with pytest.raises(TypeError, match=says):
        dk.wrap(AudioLDMPipeline())


def nan_in_second(images, prompts):
    return torch.where(torch.tensor([p == "b" for p in prompts]), torch.nan, images.mean((1, 2, 3)))


def nan_gradient(images, prompts):
    return (images.mean((1, 2, 3)) * 0).sqrt()


@pytest.mark.parametrize("micro_batch", [None, 1])
@pytest.mark.parametrize(("reward", "says"), [
    (nan_in_second, "nan_in_second gave a non-finite reward for sample 1 at step 2"),
    (nan_gradient, "gradient in x0bar is not finite for sample 0.* at step 2"),
])  # fmt: skip
def test_non_finite_never_reaches_the_embedding(random_backbone, reward, says, micro_batch):
    method = dk.DATE(reward, rho=0.5, when=dk.steps(2))
    sampler = dk.Sampler(random_backbone, method, num_steps=4, micro_batch=micro_batch)
    run = sampler.start(["a", "b"], seeds=[0, 1])
    run.step(2)
    before = run.state
    with pytest.raises(dk.NonFiniteError, match=says):
        run.finish()
    assert run.state is before
    assert torch.equal(run.state.c, run.state.c_org)
    run.fork(dk.Fixed()).finish()  # the past is still good


@pytest.mark.parametrize(("reward", "says"), [
    (lambda x, p: x.mean(), r"shape \(2,\); it returned \(\)"),
    (lambda x, p: x.mean((2, 3)), r"returned \(2, 3\)"),
    (lambda x, p: 0.5, "returned float"),
    (lambda x, p: x.detach().mean((1, 2, 3)), "carries no gradient"),
    (lambda x, p: torch.ones(2, requires_grad=True) * 2, "carries no gradient"),
])  # fmt: skip
def test_a_reward_that_breaks_the_contract(random_backbone, reward, says):
    run = dk.Sampler(random_backbone, dk.DATE(reward), num_steps=4).start(["a", "b"], seeds=[0, 1])
    with pytest.raises(dk.RewardError, match=says):
        run.step()
    assert run.state.i == 0


class Noisy(torch.nn.Sequential):
    """A network that nobody has put in eval mode."""

    def forward(self, images, prompts):
        return super().forward(images).mean((1, 2, 3))


def test_a_reward_that_is_another_one_at_every_call():
    for part in (torch.nn.Dropout(), torch.nn.BatchNorm2d(3)):
        reward = Noisy(torch.nn.Conv2d(3, 3, 1), part)
        with pytest.raises(ValueError, match="Noisy is in training mode"):
            dk.DATE(reward)
        assert dk.DATE(reward.eval()).reward is reward
    assert dk.DATE(Noisy(torch.nn.Conv2d(3, 3, 1)))  # whose mode changes nothing


@pytest.mark.parametrize("reward", [
    lambda x, p: x.mean((1, 2, 3)) - x.mean((1, 2, 3)).mean(), lambda x, p: 0 * x.mean((1, 2, 3)),
])  # fmt: skip
def test_a_reward_without_a_slope_is_said_to_move_nothing(random_backbone, reward):
    """Such as one that compares the pictures of a batch: its gradient cancels in their sum."""
    sampler = dk.Sampler(random_backbone, dk.DATE(reward), num_steps=4)
    with pytest.warns(UserWarning, match="no slope at step 0"):
        info = sampler.start(["a", "a"], latents=torch.zeros(2, 4, 16, 16)).step()
    assert not info.updated


def test_what_is_not_there_to_be_plotted(sampler):
    run = sampler.start(["a"], seeds=[0]).finish()
    for ask, says in (
        (lambda: dk.plot.filmstrip(run, sample=1), "samples are 0 to 0"),
        (lambda: dk.plot.filmstrip(run, steps=[0, 4]), "step 4 is none that these runs have taken"),
        (lambda: dk.plot.compare(run, run, labels=["one"]), "2 runs need as many labels, got 1"),
        (lambda: dk.plot.compare(run, samples=[0, -1]), "there is no sample -1"),
        (lambda: dk.plot.diagram(run.history[0]), "step 0 has no reward to show"),
    ):
        with pytest.raises(ValueError, match=says):
            ask()


def test_run_arguments(sampler):
    run = sampler.start(["a"], seeds=[0])
    run.step(2)
    noisy = run.state.replace(noise=torch.zeros(4, 1, 4, 16, 16))
    for ask, error, says in (
        (lambda: run.step(0), ValueError, "from 1 up"),
        (lambda: run.rewind(to=3), ValueError, "from 0 to 2, got 3"),
        (lambda: run.fork(num_steps=10), ValueError, "num_steps cannot change"),
        (lambda: sampler.step(noisy), ValueError, "brings its own step noise"),
        (lambda: run.fork(colour="red"), TypeError, "unexpected keyword argument 'colour'"),
        (lambda: dk.steps(1.5), ValueError, "a step of steps"),
        (lambda: dk.SoftREPA("shape"), ValueError, "unknown soft tokens 'shape'"),
        (lambda: run.peek(None, run.state.c[:, 1:]), ValueError, "c must be a tensor of shape"),
        (lambda: dk.plot.compare(run, sampler.start(["b"])), ValueError, "other prompts"),
    ):
        with pytest.raises(error, match=says):
            ask()
    assert run.state.i == 2


def test_defined_behaviour(sampler):
    assert sampler.start("a star").prompts == ("a star",)
    run = sampler.start("a star", seeds=[3, 4])
    assert run.prompts == ("a star", "a star")
    assert not torch.equal(run.state.xt[0], run.state.xt[1])
    fresh = sampler.start(["a", "b"])
    assert len(set(fresh.seeds)) == 2
    assert torch.equal(sampler.start(["a", "b"], seeds=fresh.seeds).state.xt, fresh.state.xt)
    assert sampler.start([""], seeds=[0]).finish().done
