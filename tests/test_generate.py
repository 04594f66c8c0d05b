"""`datekit generate`: killed anywhere and run again, by one process or two, the same files."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pipelines
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import datekit as dk
from datekit.cli import main
from datekit.evaluation import generate as module
from datekit.evaluation.folders import picture
from datekit.evaluation.generate import generate
from datekit.evaluation.prompts import Row
from datekit.serialize import describe

pytestmark = pytest.mark.usefixtures("alone")
LOADED = [  # before the fork, as it takes seconds
    "hypothesis",
    "datekit.cli",
    "datekit.evaluation.generate",
    "datekit.backbones.unet",
    "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion",
]
PATIENCE = 900  # seconds, for machines that do something else beside


@pytest.fixture(scope="module")
def sampler():
    """DATE on a float32 U-Net, where a picture's last bits depend on its batch."""
    backbone = dk.wrap(pipelines.stable_diffusion(), name="tiny")
    method = dk.DATE(pipelines.Brightness(), rho=1.0, when=dk.every(2))
    return dk.Sampler(backbone, method, num_steps=2)


THINGS = ("red star", "red circle", "blue star", "blue circle", "green star", "green circle")
ROWS = [Row(f"a {thing}", 7 * n) for n, thing in enumerate(THINGS)]


@pytest.fixture(scope="module")
def whole(sampler, tmp_path_factory):
    """The uninterrupted run of ROWS."""
    return generate(sampler, ROWS, tmp_path_factory.mktemp("whole"), batch_size=4)


def files(folder: Path) -> dict[str, bytes]:
    paths = [*folder.glob("*.png"), *folder.glob("*.jsonl")]
    return {path.name: path.read_bytes() for path in paths}


def in_own_process(arguments: list[str], stay: int | None = None, **environment: str):
    """`datekit` in a process of its own, forked from one that has only loaded it; with `stay`
    pictures it waits.

    A fork of this process would not do: autograd refuses to run in one whose parent has threads of
    its own, as a step on tensors without numbers leaves them.
    """
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(LOADED)
    child = server.Process(target=_child, args=(arguments, environment, stay))
    child.start()
    return child


def _child(arguments: list[str], environment: dict[str, str], stay: int | None) -> None:
    torch.set_num_threads(1)
    os.environ.update(environment)
    draw, out = module._draw, Path(arguments[-1])

    def stop(*args):
        return time.sleep(PATIENCE) if len(list(out.glob("*.png"))) == stay else draw(*args)

    module._draw = stop
    sys.exit(main(arguments))


def test_killed_ten_times_and_resumed_by_two_the_bytes_are_those_of_one_uninterrupted_run(tmp_path):
    model, prompts = tmp_path / "model", tmp_path / "prompts.txt"
    pipelines.stable_diffusion().save_pretrained(model)
    colours = ("red", "green", "blue", "cyan") * 4
    prompts.write_text("\n".join(f"a {c} circle\na {c} square\na {c} star" for c in colours))
    words = "--reward target --rho 2 --update-every 2 --steps 2 --height 32 --width 32"
    sources = ["--prompts", str(prompts), "--model", str(model), "--device", "cpu"]
    command = ["generate", *sources, *words.split(), "--batch-size", "3", "--out"]
    straight = in_own_process([*command, str(tmp_path / "straight")])
    straight.join(PATIENCE)
    assert straight.exitcode == 0
    rng, out = random.Random(0), tmp_path / "killed"
    for kill in range(10):
        child = in_own_process([*command, str(out)], stay=42)
        wanted = min(len(list(out.glob("*.png"))) + rng.randrange(4), 42)
        deadline = time.monotonic() + PATIENCE
        while kill and len(list(out.glob("*.png"))) < wanted and time.monotonic() < deadline:
            assert child.is_alive()
            time.sleep(0.002)
        time.sleep(rng.random() * 0.06)  # anywhere: while it starts, samples, writes
        child.kill()
        child.join(PATIENCE)
        assert child.exitcode == -9, "it ended before it could be killed"
        for path in out.glob("*.png"):
            Image.open(path).load()  # whole
    done = len(list(out.glob("*.png")))
    assert 0 < done < len(list((tmp_path / "straight").glob("*.png")))
    ranks = [{"RANK": str(rank), "WORLD_SIZE": "2"} for rank in (0, 1)]
    for child in [in_own_process([*command, str(out)], **rank) for rank in ranks]:
        child.join(PATIENCE)
        assert child.exitcode == 0
    assert files(out) == files(tmp_path / "straight")


@settings(max_examples=6)
@given(st.sets(st.integers(0, len(ROWS) - 1), min_size=1), st.integers(1, 3))
def test_whatever_is_missing_and_however_many_share_it_the_bytes_are_the_same(
    sampler, whole, tmp_path_factory, gone, world
):
    out = tmp_path_factory.mktemp("resumed") / "out"
    shutil.copytree(whole, out)
    for n in gone:  # an empty file, as a machine that lost power leaves it, is no picture
        picture(out, n).unlink() if n % 2 else picture(out, n).write_bytes(b"")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD_SIZE", str(world))
        for rank in reversed(range(world)):
            patch.setenv("RANK", str(rank))
            generate(sampler, ROWS, out, batch_size=4)
    assert files(out) == files(whole)


def drawn(folder: Path) -> np.ndarray:
    return np.stack([Image.open(folder / f"{n:05d}.png") for n in range(4)])


def test_the_pictures_are_those_of_a_run_and_of_a_best_of(sampler, whole, target, tmp_path):
    prompts, seeds = [row.prompt for row in ROWS[:4]], [row.seed for row in ROWS[:4]]
    run = sampler.start(prompts, seeds=seeds).finish(progress=False)
    assert np.array_equal(np.stack(run.images), drawn(whole))
    lines = [json.loads(line) for line in (whole / "metadata.jsonl").read_text().splitlines()]
    for n, row in enumerate(ROWS):
        told = {"prompt": row.prompt, "seed": row.seed, "family": None}
        assert lines[n] == {"file_name": f"{n:05d}.png"} | told
    assert module.read_settings(whole)["sampler"]["method"]["rho"] == 1.0
    best = dk.best_of(dk.Sampler(dk.load("gaussian"), num_steps=2), 3, target)
    generate(best, ROWS[:4], tmp_path)
    candidates = best.start(prompts, seeds=seeds).finish(progress=False)
    assert np.array_equal(np.stack(candidates.images), drawn(tmp_path))


def test_particles_and_noises_by_words_are_those_of_the_library_and_resume(target, tmp_path):
    words = "generate --prompts shapes:3 --model gaussian --device cpu --method Fixed --steps 4"
    backbone, options = dk.load("gaussian", device="cpu"), {"num_steps": 4, "eta": 1.0}
    steering = dk.FKSteering(backbone, reward=target, particles=3, strength=50.0, **options)
    search = dk.ReNO(dk.Sampler(backbone, num_steps=4), target, 2)
    for more in ("--particles 3,strength=50", "--reno 2"):
        out = tmp_path / more
        command = [*words.split(), *more.split(), "--out", str(out)]
        assert main(command) == 0
        begun, told = files(out), (out / "metadata.jsonl").read_text().splitlines()
        asked = {"prompts": [], "seeds": []}
        for row in map(json.loads, told):
            asked["prompts"].append(row["prompt"]), asked["seeds"].append(row["seed"])
        if "reno" in more:
            images = search.start(**asked).finish().images
        else:
            run = steering.start(**asked).finish()
            images = [run.images[n] for n in steering.best(run.state)]
        for n, image in enumerate(images):
            assert np.array_equal(np.asarray(Image.open(picture(out, n))), np.asarray(image))
        picture(out, 1).unlink()
        assert main(command) == 0
        assert files(out) == begun


@pytest.mark.parametrize(("change", "message"), [
    ({"sampler": {"method": dk.Fixed()}}, "sampler.method"),
    ({"sampler": {"guidance_scale": 3.0}}, "guidance_scale"),
    ({"batch_size": 3}, "batch_size was 4, now 3"),
    ({"negative_prompt": "dark"}, "negative_prompts was None, now 'dark'"),
    ({"rows": [Row("a red star", 1), *ROWS[1:]]}, "prompts and seeds was"),
])  # fmt: skip
def test_a_changed_setting_is_refused(sampler, whole, change, message):
    before = files(whole)
    assert describe(lambda i, p: i.mean()) != describe(lambda i, p: -i.mean())
    changed, rows = sampler.replace(**change.pop("sampler", {})), change.pop("rows", ROWS)
    with pytest.raises(ValueError, match=message):
        generate(changed, rows, whole, **({"batch_size": 4} | change))
    assert files(whole) == before


def test_what_a_folder_was_made_with_has_to_stay(sampler, whole, tmp_path, monkeypatch):
    """Also where the manifest is lost: settings.json knows it. The same prompts write it again."""
    other, out = [Row("a green square", 1), *ROWS[1:]], tmp_path / "out"
    shutil.copytree(whole, out)
    (out / "metadata.jsonl").unlink()
    with pytest.raises(ValueError, match="prompts and seeds was"):
        generate(sampler, other, out, batch_size=4)
    generate(sampler, ROWS, out, batch_size=4)
    assert files(out) == files(whole)
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    monkeypatch.setattr(module, "version", lambda name: "99")
    with pytest.raises(ValueError, match=f"threads was {threads}, .*datekit was .* now '99'"):
        generate(sampler, ROWS, whole, batch_size=4)
    (out / "settings.json").unlink()
    with pytest.raises(ValueError, match=r"holds pictures, but no settings.json"):
        generate(sampler, ROWS, out)


def test_two_processes_of_different_settings_in_one_empty_folder(sampler, tmp_path, monkeypatch):
    """The second begins after the first has looked at the folder, before it has settings."""
    own = module.write_json

    def interfere(*args, **settings):
        monkeypatch.setattr(module, "write_json", own)
        generate(sampler, ROWS, tmp_path, batch_size=3)
        return own(*args, **settings)

    monkeypatch.setattr(module, "write_json", interfere)
    with pytest.raises(ValueError, match="batch_size was 3, now 2"):
        generate(sampler, ROWS, tmp_path, batch_size=2)
    assert json.loads((tmp_path / "settings.json").read_text())["settings"]["batch_size"] == 3
    alone = generate(sampler, ROWS, tmp_path / "alone", batch_size=3)
    assert files(tmp_path) == files(alone)


@pytest.mark.parametrize(("options", "message"), [
    (["--best-of", "0"], "n must be a whole number from 1 up, got 0"),
    (["--particles", "0"], "particles must be a whole number from 1"),
    (["--particles", "2", "--eta", "0"], "adds no noise, so copies of a particle would stay"),
    (["--reno", "2,speed=1"], "ReNO does not read speed"),
    (["--reno", "many"], "iterations takes a number, got 'many'"),
    (["--method", "DATE", "--reward", "TargetReward:size=2"], "cannot make the reward 'TargetRe"),
    (["--device", "meta"], "DATEKIT_TRACEBACK=1 tells"),
    (["--out", __file__], "FileExistsError"),
])  # fmt: skip
def test_bad_options_are_a_line_and_no_traceback(tmp_path, capsys, options, message):
    given = {"--prompts": "shapes:1", "--model": "gaussian", "--steps": "1", "--method": "Fixed"}
    given["--out"] = str(tmp_path / "out")
    given |= dict(zip(options[::2], options[1::2], strict=True))
    assert main(["generate", *(word for pair in given.items() for word in pair)]) == 2
    told = capsys.readouterr().err
    assert told.startswith("datekit generate: ")
    assert message in told


def test_of_several_searches_one_can_be_asked_for(capsys):
    with pytest.raises(SystemExit):
        main(["generate", "--prompts", "p", "--out", "o", "--best-of", "2", "--particles", "2"])
    assert "--particles: not allowed with argument --best-of" in capsys.readouterr().err


def test_nan_is_never_written(tmp_path):
    backbone = dk.load("gaussian")
    backbone.decode = lambda latents: torch.full((len(latents), 3, 32, 32), float("nan"))
    with pytest.raises(dk.NonFiniteError, match="in the picture for sample 0"):
        generate(dk.Sampler(backbone, num_steps=1), ROWS, tmp_path)
    assert not list(tmp_path.glob("*.png"))
    with pytest.raises(ValueError, match="no other size"):  # nothing that hinders a better command
        generate(dk.Sampler(backbone, num_steps=1), ROWS, tmp_path / "new", height=7)
    assert not list((tmp_path / "new").iterdir())
