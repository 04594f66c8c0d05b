"""What would give a wrong result without a word is right, or refused with what to do."""

from __future__ import annotations

import contextlib
import shutil
import struct
import zlib

import families
import numpy as np
import pipelines
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import datekit as dk
from datekit import editing
from datekit.cli import main
from datekit.evaluation.evaluate import evaluate
from datekit.rewards.base import score
from datekit.rewards.decoders import Tiny

PROMPT = ["a red circle"]


def final(backbone, method=None, **settings):
    return dk.Sampler(backbone, method, num_steps=4, **settings).start(PROMPT, seeds=[0]).finish()


@pytest.mark.parametrize("kind", ["fixed", "date", "guidance"])
def test_contexts_of_the_caller_change_no_number(random_backbone, brightness, kind):
    """Right are the numbers without a context; what has no right answer there is refused."""
    methods = {"fixed": dk.Fixed(), "date": dk.DATE(brightness)}
    method = methods.get(kind) or dk.UniversalGuidance(brightness)
    expected, start = final(random_backbone, method), dk.Sampler(random_backbone, method)
    with torch.no_grad():
        assert torch.equal(final(random_backbone, method).state.xt, expected.state.xt)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        run = expected.fork(at=1)
        for call in (lambda: start.start(PROMPT), run.step, run.peek, lambda: expected.pixels,
                     lambda: score(brightness, torch.zeros(1, 3, 8, 8), PROMPT),
                     lambda: evaluate(["none"], device="cpu")):  # fmt: skip
            with pytest.raises(RuntimeError, match="autocast would change"):
                call()
    with torch.inference_mode():
        begun = start.start(PROMPT, seeds=[0])
        refused = pytest.raises(RuntimeError, match="inference_mode") if kind != "fixed" else None
        with refused or contextlib.nullcontext():
            found = final(random_backbone, method).state.xt
            assert torch.equal(found, expected.state.xt)
    with refused or contextlib.nullcontext():
        begun.step()


def test_a_coarse_default_precision_is_refused(random_backbone):
    torch.set_default_dtype(torch.bfloat16)
    try:
        with pytest.raises(RuntimeError, match=r"set_default_dtype\(torch.bfloat16\)"):
            dk.Sampler(random_backbone, num_steps=2).start("a", seeds=[0])
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_default_device_away_from_the_model_is_refused(random_backbone):
    sampler = dk.Sampler(random_backbone, num_steps=2)
    run, expected = sampler.start(PROMPT, seeds=[0]), final(random_backbone)
    for call in (lambda: sampler.start(PROMPT), run.step, lambda: expected.pixels):
        with torch.device("meta"), pytest.raises(RuntimeError, match="set_default_device"):
            call()
    assert run.finish().done


@pytest.mark.parametrize("make", [
    lambda b, r: dk.Sampler(b, guidance_scale=1e30, num_steps=4),
    lambda b, r: dk.Sampler(b, dk.RandomDirection(rho=1e30, when=dk.steps(3)), num_steps=4),
    lambda b, r: dk.Sampler(b, dk.DATE(r, rho=1e30, when=dk.steps(3)), num_steps=4),
])  # fmt: skip
def test_a_run_never_ends_in_no_number(random_backbone, brightness, make):
    run = make(random_backbone, brightness).start(PROMPT, seeds=[0])
    with pytest.raises(dk.NonFiniteError, match=r"sample 0 at step \d"):
        run.finish()
    assert run.state.xt.isfinite().all()
    assert not run.done


def test_a_schedule_without_a_step_in_the_run_is_refused(random_backbone, brightness):
    late = dk.DATE(brightness, when=dk.late())
    for method in (late, dk.EBCA(when=dk.middle()) + dk.DATE(brightness)):
        with pytest.raises(ValueError, match="no step in a run from step 0 to 0"):
            dk.Sampler(random_backbone, method, num_steps=1)
    image = torch.rand(3, 64, 64)
    early = dk.DATE(brightness, when=dk.early())
    with pytest.raises(ValueError, match="no step in a run from step 5 to 9"):
        editing.sdedit(random_backbone, image, "a", early, skip=5, num_steps=10)
    assert editing.sdedit(random_backbone, image, "a", late, skip=5, num_steps=10).state.i == 5


@pytest.mark.parametrize(("wrong", "says"), [
    (lambda b, r: dk.DATE(r, decoder=b.vae), "a decoder is .* got AutoencoderKL"),
    (lambda b, r: dk.DATE(r, decoder=b.pipe), "a decoder is .* got StableDiffusionPipeline"),
    (lambda b, r: dk.DATE(r, decoder=Tiny), "a decoder is"),
    (lambda b, r: dk.DATE(dk.rewards.CLIPScore), "a reward must be"),
    (lambda b, r: dk.DATE(dk.every(5)), "a reward must be"),
    (lambda b, r: dk.best_of(b, 2, r), "best_of takes a dk.Sampler"),
    (lambda b, r: dk.best_of(dk.best_of(dk.Sampler(b), 2, r), 2, r), "best_of takes a dk.Sampler"),
    (lambda b, r: dk.Sampler(b, checkpointing="no"), "checkpointing must be True or False"),
    (lambda b, r: dk.Sampler(b, keep_graph="false"), "keep_graph must be True or False"),
    (lambda b, r: dk.Sampler(b).start(["a"], negative_prompts=3), "a prompt is a string, got int"),
    (lambda b, r: dk.Sampler(b).start("a").peek(r, c=[1]), "c must be a tensor"),
])  # fmt: skip
def test_things_of_another_kind(random_backbone, brightness, wrong, says):
    with pytest.raises((TypeError, ValueError), match=says):
        wrong(random_backbone, brightness)


def generated(folder, *words):
    """The exit status of `datekit generate` for two prompts of the closed form."""
    prompts = folder.parent / "prompts.txt"
    prompts.write_text("a red circle\na star\n")
    words = ["--prompts", str(prompts), "--out", str(folder), "--steps", "3", *words]
    return main(["generate", "--model", "gaussian", "--device", "cpu", *words])


def saved(file, change):
    """The picture of a file, changed, in its place, with all that is written beside the pixels."""
    with Image.open(file) as image:
        texts = PngInfo()
        for name, text in image.info.items():
            texts.add_text(name, text)
        change(image.copy()).save(file, pnginfo=texts)


def other_folder(file, data):
    """The picture of the same row that another method drew."""
    other = file.parent.parent / "other"
    generated(other, "--method", "RandomDirection", "--rho", "5")
    shutil.copy(other / file.name, file)


def half_the_rows(file, data):
    """A file whose checksums are right, and whose pixels end early."""
    with Image.open(file) as image:
        image.load()
        rows = b"".join(b"\0" + row.tobytes() for row in np.array(image)[: image.height // 2])
        size = struct.pack(">IIBBBBB", *image.size, 8, 2, 0, 0, 0)
        parts = {b"IHDR": size, b"tEXt": b"datekit\0" + image.info["datekit"].encode()}
    parts |= {b"IDAT": zlib.compress(rows), b"IEND": b""}
    chunks = [
        struct.pack(">I", len(x)) + kind + x + struct.pack(">I", zlib.crc32(kind + x))
        for kind, x in parts.items()
    ]
    file.write_bytes(data[:8] + b"".join(chunks))


DAMAGES = {
    "cut": lambda file, data: file.write_bytes(data[: len(data) // 2]),
    "zeroed": lambda file, data: file.write_bytes(bytes(len(data))),
    "flipped": lambda file, data: file.write_bytes(
        data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]
    ),
    "empty": lambda file, data: file.write_bytes(b""),
    "another row": lambda file, data: shutil.copy(file.with_name("00000.png"), file),
    "another folder": other_folder,
    "smaller": lambda file, data: saved(file, lambda image: image.resize((8, 8))),
    "half the rows": half_the_rows,
    "one pixel": lambda file, data: saved(file, lambda image: image.putpixel((0, 0), 9) or image),
    "16 bits": lambda file, data: saved(file, lambda image: Image.new("I;16", image.size, 40000)),
}


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_pictures_are_drawn_again_and_never_judged(tmp_path, capsys, damage):
    folder = tmp_path / "pictures"
    assert generated(folder, "--method", "Fixed") == 0
    file = folder / "00001.png"
    data = file.read_bytes()
    DAMAGES[damage](file, data)
    assert main(["evaluate", str(folder), "--metrics", "target"]) == 2
    assert "00001.png is no whole picture" in capsys.readouterr().err
    metadata = tmp_path / "evaluation_metadata.jsonl"
    metadata.write_text('{"prompt": "a star"}\n')
    assert main(["geneval", str(folder), str(metadata), str(tmp_path / "geneval")]) == 2
    assert generated(folder, "--method", "Fixed") == 0
    assert file.read_bytes() == data


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("change", [
    lambda text: text.split("\n")[0] + "\n", lambda text: text.replace("red", "blue"),
    lambda text: text.replace("00001.png", "00000.png"),
])  # fmt: skip
def test_a_manifest_that_was_changed_is_refused_and_written_anew(tmp_path, capsys, change):
    folder = tmp_path / "pictures"
    generated(folder, "--method", "Fixed")
    manifest = folder / "metadata.jsonl"
    text = manifest.read_text()
    manifest.write_text(change(text))
    assert main(["evaluate", str(folder), "--metrics", "target"]) == 2
    assert "metadata.jsonl was changed since" in capsys.readouterr().err
    assert generated(folder, "--method", "Fixed") == 0
    assert manifest.read_text() == text
    (folder / "settings.json").write_text('{"settings": 3}')
    assert main(["evaluate", str(folder)]) == 2
    assert "settings must be an object" in capsys.readouterr().err


@pytest.mark.parametrize("steps", ["0:99999999999", "0-3", "1:2:3:4", "", "0:3:0"])
def test_steps_in_words_that_mean_none(tmp_path, capsys, steps):
    assert generated(tmp_path / "o", "--update-steps", steps) == 2
    assert "ValueError" in capsys.readouterr().err


def test_a_schedule_is_named_once(tmp_path, capsys):
    with pytest.raises(SystemExit):
        generated(tmp_path / "o", "--update-every", "2", "--when", "third:2")
    assert "not allowed with" in capsys.readouterr().err
    assert generated(tmp_path / "o", "--method", "Fixed", "--threads", "99999999") == 2


def test_a_link_stays_a_link(tmp_path):
    link, file = tmp_path / "run.pt", tmp_path / "elsewhere.pt"
    link.symlink_to(file)
    run = dk.Sampler(dk.load("gaussian"), num_steps=2).start("a", seeds=[0])
    run.save(link)
    assert link.is_symlink()
    assert torch.equal(dk.Run.load(file).state.xt, run.state.xt)


@pytest.mark.parametrize(("name", "error", "says"), [
    ("models/x.safetensors", ValueError, "from_single_file"),
    ("models/my-folder", OSError, "no folder here, and as a hub id it did not load"),
    ("empty", OSError, "not the folder of a whole pipeline"),
    ("half", OSError, 'variant="fp16" asks'),
])  # fmt: skip
def test_sources_that_cannot_be_loaded(tmp_path, name, error, says):
    source = tmp_path / name
    if name == "empty":
        source.mkdir()
    elif name == "half":
        half = pipelines.stable_diffusion().to(dtype=torch.float16)
        half.save_pretrained(source, variant="fp16")
        assert dk.load(source, device="cpu", variant="fp16").dtype == torch.float32
    with pytest.raises(error, match=says):
        dk.load(source if source.exists() else name)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_what_lies_on_the_hub(tmp_path, variant):
    """A pipeline without one of its parts, and one in half precision alone, by their hub ids."""
    place = tmp_path / "models--me--model"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("a" * 40)
    pipe = families.FAMILIES["sd3"]()
    pipe.register_modules(text_encoder_3=None, tokenizer_3=None)
    pipe.to(dtype=torch.float16 if variant else torch.float32)
    pipe.save_pretrained(place / "snapshots" / ("a" * 40), variant=variant)
    there = {"cache_dir": str(tmp_path), "device": "cpu"}
    if variant:
        with pytest.raises(OSError, match='variant="fp16" asks'):
            dk.load("me/model", **there)
    backbone = dk.load("me/model", variant=variant, torch_dtype="float64", **there)
    assert backbone.dtype == torch.float64
    run = dk.Sampler(backbone, num_steps=2).start(PROMPT, seeds=[0]).finish()
    expected = dk.Sampler(dk.wrap(pipe.to(dtype=torch.float64)), num_steps=2)
    assert torch.equal(run.state.xt, expected.start(PROMPT, seeds=[0]).finish().state.xt)


@pytest.mark.parametrize(("settings", "error", "says"), [
    ({"dtype": "int8"}, ValueError, "dtype must be"), ({"dtype": "load"}, ValueError, "'load'"),
    ({"torch_dtype": "half "}, ValueError, "dtype must be"),
    ({"text_lenght": 7}, TypeError, "shapes-flow has no setting text_lenght"),
])  # fmt: skip
def test_settings_that_mean_nothing(settings, error, says):
    with pytest.raises(error, match=says):
        dk.load("shapes-flow", **settings)


def test_layers_of_8_bits_sample_but_give_no_gradient(brightness):
    """It is said before anything is sampled."""
    pipe = pipelines.stable_diffusion()
    pipe.unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn)
    backbone = dk.wrap(pipe)
    run = final(backbone)
    late = dk.DATE(brightness, when=dk.late())
    for refused in (lambda: dk.Sampler(backbone, late), lambda: run.rewind().peek(brightness)):
        with pytest.raises(RuntimeError, match="no gradient passes layers stored in 8 bits"):
            refused()
