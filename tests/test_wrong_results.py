"""What would be wrong without a word: it is right, or refused with what to do."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor

import diffusers
import families
import pipelines
import pytest
import torch
from transformers.convert_slow_tokenizer import bytes_to_unicode

import datekit as dk
from datekit import editing
from datekit.backbones.identity import fingerprint
from datekit.backbones.text import _letters
from datekit.evaluation.generate import generate
from datekit.evaluation.prompts import Row

PROMPT = "a red circle left of a blue square"
METHODS = [
    dk.Fixed(),
    dk.SoftREPA("shapes"),
    dk.EBCA(0.1, 0.1),
    dk.SoftREPA("shapes", when=dk.every(2)),
]


def finished(backbone, method=None):
    """The last latent of a short run."""
    return dk.Sampler(backbone, method, num_steps=2).start(PROMPT, seeds=[0]).finish().state.xt


@pytest.mark.parametrize(("how", "order"), [("tuned", 1), ("blocks", -1)])
def test_a_compiled_network_is_patched_as_a_plain_one(how, order):
    """As a whole and by its blocks, with the patch last or first; a user's hook is seen, too."""
    torch._dynamo.reset()
    expected = [finished(dk.load("shapes"), method) for method in METHODS]
    assert all(not torch.equal(expected[0], other) for other in expected[1:])
    backbone = dk.load("shapes")
    network = backbone.network
    if how == "tuned":
        backbone.tune(compile="eager")
    for block in network.down_blocks if how == "blocks" else ():
        block.compile(backend="eager")
    for method, latent in list(zip(METHODS, expected, strict=True))[::order]:
        assert torch.equal(finished(backbone, method), latent), method
    if how == "tuned":
        network.mid_block.register_forward_hook(lambda module, args, out: 0 * out)
        assert not torch.equal(finished(backbone), expected[0])


def test_a_network_that_torch_wrapped_is_refused():
    pipe = pipelines.stable_diffusion()
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    with pytest.raises(ValueError, match="compile it in its place"):
        dk.wrap(pipe)


def test_threads_share_a_network_that_methods_patch(random_backbone, brightness):
    """Beside each other, each gives what it gives alone."""
    methods = [dk.EBCA(0.1, 0.1), dk.Fixed(), dk.DATE(brightness), dk.UniversalGuidance(brightness)]
    alone = [finished(random_backbone, method) for method in methods]
    assert not torch.equal(alone[0], alone[1])
    with ThreadPoolExecutor(len(methods)) as pool:
        beside = list(pool.map(lambda method: finished(random_backbone, method), methods * 4))
    assert all(torch.equal(*pair) for pair in zip(beside, alone * 4, strict=True))


def test_threads_share_a_tokenizer():
    backbone = dk.wrap(pipelines.stable_diffusion())
    alone = backbone.encode([PROMPT])
    with ThreadPoolExecutor(3) as pool:
        beside = list(pool.map(lambda _: backbone.encode([PROMPT]), range(150)))
    assert all(one.same(alone) and one.tokens == alone.tokens for one in beside)


def test_a_call_in_another_thread_is_refused_while_a_method_patches_the_network():
    pipe = pipelines.stable_diffusion()
    told: list[str] = []

    def call(images, prompts):
        with ThreadPoolExecutor(1) as pool:
            beside = pool.submit(pipe, PROMPT, num_inference_steps=1, output_type="latent")
            told.append(str(beside.exception()))
        return images.mean((1, 2, 3))

    run = dk.Sampler(pipe, dk.EBCA(0.1, 0.1) + dk.DATE(call), num_steps=1).start(PROMPT, seeds=[0])
    run.finish()
    assert "a method has patched this network in another thread" in told[0]
    call(torch.zeros(1, 3, 8, 8), [PROMPT])
    assert told[-1] == "None"


@pytest.mark.parametrize("how", ["sampler", "pipeline"])
@pytest.mark.parametrize("method", [dk.Fixed(), dk.EBCA(0.1, 0.1), dk.SoftREPA("shapes")], ids=str)
def test_a_reward_that_samples_never_meets_a_patched_network(method, how):
    """It gets the plain network where nothing is patched, and is refused where something is."""
    backbone, seen = dk.load("shapes"), []

    def draws(images, prompts):
        if how == "sampler":
            seen.append(finished(backbone))
        else:
            call = backbone.pipe(PROMPT, num_inference_steps=1, output_type="latent")
            seen.append(call.images)
        return images.mean((1, 2, 3))

    plain = finished(backbone)
    run = dk.Sampler(backbone, method + dk.DATE(draws), num_steps=1).start(PROMPT, seeds=[0])
    if isinstance(method, dk.Fixed):
        run.finish()
        assert how == "pipeline" or torch.equal(seen[0], plain)
        return
    for act in (run.finish, run.peek):
        with pytest.raises(RuntimeError, match="needs a pipeline of its own"):
            act()
    assert not seen
    assert torch.equal(finished(backbone), plain)


def other_weight(pipe, part):
    """One number far from all others, as a learnt embedding or a fine-tuned layer has it."""
    weight = list(getattr(pipe, part).parameters())[-1].data
    weight.view(-1)[weight.numel() // 3] += 1


def learnt(pipe):
    pipe.load_textual_inversion(torch.ones(3, 32), token="<cat>")


def swapped(pipe):
    """The columns of a weight in another order, which keeps every sum of it."""
    weight = pipe.unet.mid_block.attentions[0].proj_in.weight.data
    weight.copy_(weight.flip(1))


def other_betas(pipe):
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, beta_end=0.02)


CHANGES = {
    "columns": swapped,
    "precision": lambda pipe: pipe.to(torch.bfloat16),
    "FreeU": lambda pipe: pipe.enable_freeu(0.9, 0.2, 1.2, 1.4),
    "tiles": lambda pipe: pipe.vae.enable_tiling(),
    "hook": lambda pipe: pipe.unet.mid_block.register_forward_hook(lambda block, x, out: 2 * out),
    "processor": lambda pipe: pipe.unet.set_attention_slice(1),
    "network": lambda pipe: other_weight(pipe, "unet"),
    "autoencoder": lambda pipe: other_weight(pipe, "vae"),
    "text encoder": lambda pipe: other_weight(pipe, "text_encoder"),
    "scaling of latents": lambda pipe: pipe.vae.register_to_config(scaling_factor=0.5),
    "learnt token": learnt,
    "betas": other_betas,
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_begun_with_other_weights_is_refused(change, tmp_path):
    pipe, rows = pipelines.stable_diffusion(), [Row(PROMPT, 0), Row(PROMPT, 1)]
    sampler = dk.Sampler(pipe, num_steps=2)
    folder = generate(sampler, rows, tmp_path / "pictures", batch_size=1)
    run = sampler.start(PROMPT, seeds=[0]).save(tmp_path / "run")
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    inversion = editing.ddim_inversion(pipe, image, PROMPT, num_steps=2)
    inversion = inversion.save(tmp_path / "inversion")
    with pytest.raises(ValueError, match="cannot be loaded by a name"):
        editing.Inversion.load(inversion)
    again = dk.Sampler(pipelines.stable_diffusion(), num_steps=2)
    generate(again, rows, folder, batch_size=1)
    dk.Run.load(run, again)
    editing.Inversion.load(inversion, again.backbone)
    CHANGES[change](pipe)
    other = dk.Sampler(pipe, num_steps=2)
    with pytest.raises(ValueError, match="weights was"):
        generate(other, rows, folder, batch_size=1)
    with pytest.raises(ValueError, match="weights was"):
        dk.Run.load(run, other)
    with pytest.raises(ValueError, match="another backbone"):
        editing.Inversion.load(inversion, other.backbone)


@pytest.mark.parametrize("family", families.KINDS)
def test_a_run_and_what_changes_no_number_leave_a_network_what_it_is(family):
    backbone = families.fresh(family)
    before = fingerprint(backbone)
    run = dk.Sampler(backbone, dk.DATE(pipelines.Brightness()), num_steps=2).start(PROMPT)
    assert run.finish().images
    backbone.network.enable_gradient_checkpointing()
    backbone.network.requires_grad_(True)
    assert fingerprint(backbone) == before
    backbone.network.train()
    assert fingerprint(backbone) != before


@pytest.mark.parametrize("part", ["vae", "unet", "text_encoder", "tokenizer", "scheduler"])
def test_a_part_exchanged_after_wrapping_is_refused(part):
    pipe = pipelines.stable_diffusion()
    backbone = dk.wrap(pipe)
    run = dk.Sampler(backbone, num_steps=2).start(PROMPT, seeds=[0])
    setattr(pipe, part, getattr(pipelines.stable_diffusion(seed=1), part))
    for act in (run.step, lambda: run.images, lambda: backbone.decode(run.state.xt)):
        with pytest.raises(RuntimeError, match=f"the {part} of .* wrap the pipeline again"):
            act()
    dk.Sampler(pipe, num_steps=2).start(PROMPT, seeds=[0]).step()


@pytest.mark.parametrize("scheduler", [
    diffusers.EDMDPMSolverMultistepScheduler, diffusers.EDMEulerScheduler,
])  # fmt: skip
@pytest.mark.parametrize("solver", [None, "dpm++", diffusers.DDIMScheduler()], ids=type)
def test_a_model_without_betas_takes_no_solver_for_them(scheduler, solver):
    pipe = pipelines.stable_diffusion()
    pipe.scheduler = scheduler()
    with pytest.raises(ValueError, match=r"does not fit a model trained with EDM.*solver='own'"):
        dk.Sampler(pipe, num_steps=2, solver=solver)


def test_no_picture_is_made_of_what_is_no_number_and_the_remedy_helps():
    """The decoder is such that half precision holds its weights and not what it computes."""
    pipe = pipelines.stable_diffusion()
    pipe.vae.decoder.conv_in.weight.data *= 2e5
    backbone = dk.wrap(pipe)
    sampler = dk.Sampler(backbone, num_steps=2)
    run = sampler.start(PROMPT, seeds=[0]).finish()
    expected = run.pixels
    pipe.vae.half()
    best = dk.best_of(sampler, 1, lambda images, prompts: torch.zeros(len(images)))
    shows = [lambda: run.images, lambda: run.history[0].images, run._repr_html_]
    shows += [lambda: dk.plot.compare(run), best.start(PROMPT, seeds=[0]).finish]
    for show in shows:
        with pytest.raises(dk.NonFiniteError, match=r"vae\.float\(\)"):
            show()
    backbone.vae.float()
    assert (run.pixels - expected).abs().max() < 0.05
    assert len(run.images) == 1
    pipe.vae.decoder.conv_out.bias.data[0] = torch.inf  # would be white
    for show in shows:
        with pytest.raises(dk.NonFiniteError):
            show()


@pytest.mark.parametrize("whose", ["model", "solver"])
def test_a_scheduler_that_was_changed_is_refused(whose):
    """Before the sampler is made it is followed."""
    pipe = pipelines.stable_diffusion()
    given = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    sampler = dk.Sampler(pipe, num_steps=2, solver=given if whose == "solver" else "own")
    run, before = sampler.start(PROMPT, seeds=[0]), finished(pipe)
    changed = given if whose == "solver" else pipe.scheduler
    changed.register_to_config(timestep_spacing="trailing")
    big = {"seeds": [0], "height": 128, "width": 128}
    for act in (run.step, run.peek, lambda: sampler.start(PROMPT, **big)):
        with pytest.raises(RuntimeError, match="make another sampler"):
            act()
    assert whose == "solver" or not torch.equal(finished(pipe), before)


EDM = diffusers.EDMEulerScheduler


@pytest.mark.parametrize(("own", "cls", "changes"), [
    (None, diffusers.DDIMScheduler, {"prediction_type": "v_prediction"}),
    (None, diffusers.EulerDiscreteScheduler, {"beta_schedule": "linear"}),
    (EDM(), EDM, {"sigma_data": 1.0}), (EDM(), EDM, {"prediction_type": "v_prediction"}),
])  # fmt: skip
def test_a_solver_for_another_model_is_refused(own, cls, changes):
    pipe = pipelines.stable_diffusion()
    pipe.scheduler = own or pipe.scheduler
    plain = cls.from_config(pipe.scheduler.config)
    dk.Sampler(pipe, num_steps=2, solver=plain)
    (name,) = changes
    with pytest.raises(ValueError, match=f"another {name} than .*from_config"):
        dk.Sampler(pipe, num_steps=2, solver=cls.from_config(plain.config, **changes))


@pytest.mark.parametrize(("family", "w", "warned"), [
    ("sd", 0.0, True), ("sd", 0.5, True), ("sd3", -1.0, True), ("sd", 1.0, False),
    ("sd", 2.0, False), ("flux", 0.0, False), ("flux-schnell", 0.0, False),
])  # fmt: skip
def test_guidance_below_one_names_both_readings(family, w, warned):
    """Wherever it is said: to a sampler, whoever uses it, or to a fork."""
    run = dk.Sampler(families.backbone(family), num_steps=2).start(["a circle"], seeds=[0])
    for begin in (lambda w: dk.Sampler(run.sampler.backbone, guidance_scale=w),
                  lambda w: run.fork(guidance_scale=w)):  # fmt: skip
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            begin(w)
        assert ["guidance_scale=1" in str(each.message) for each in seen] == [True] * warned


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_learnt_tokens_are_told_as_the_encoder_reads_them(family):
    """The pipeline's own conversion; a prompt that is too long only with all its vectors."""
    pipe = families.FAMILIES[family]()
    vectors = torch.randn(3, 32)
    pipe.load_textual_inversion(vectors, token="<cat>")
    if family == "sdxl":
        second = {"text_encoder": pipe.text_encoder_2, "tokenizer": pipe.tokenizer_2}
        pipe.load_textual_inversion(vectors, token="<cat>", **second)
    backbone = dk.wrap(pipe)
    expected = pipe.maybe_convert_prompt("a red <cat> circle", pipe.tokenizer).split()
    assert backbone.encode(["a red <cat> circle"]).tokens[0][1:8] == (*expected, "<end>")
    with pytest.warns(UserWarning, match="cut from the end of the prompt: ...'circle'"):
        backbone.encode(["<cat> " + "red " * 11 + "circle"])


@pytest.mark.parametrize("model", ["shapes", "shapes-flow"])
def test_words_that_a_shipped_model_never_read_are_named(model, recwarn):
    backbone = dk.load(model)
    with pytest.warns(UserWarning, match="does not know rde, sqaure; it knows"):
        backbone.encode(["a rde circle left of a blue sqaure", "a rde star"])
    recwarn.clear()
    backbone.encode(["two red circles", "a red circle, a blue square and a green star", ""])
    assert not recwarn


def test_labels_are_letters_and_not_bytes():
    """A token of whole letters reads as they do, one of a part of a letter as its byte."""
    (words,) = dk.wrap(pipelines.stable_diffusion()).encode(["caf\u00e9 red"]).tokens
    assert words[1:7] == ("c", "a", "f", "\\xc3", "\\xa9", "red")
    for word in ("a", "caf\u00e9", "\U0001f408"):
        assert _letters("".join(bytes_to_unicode()[byte] for byte in word.encode())) == word


def test_a_schedule_that_is_no_number_is_refused():
    """Qwen-Image stretches its times to an end, which a single step divides by zero."""
    with pytest.raises(ValueError, match="num_steps=1; take more"):
        dk.Sampler(families.fresh("qwen-image"), num_steps=1)
