"""`datekit generate`: killed anywhere and run again, by one process or two, it makes the same files."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
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
from datekit.evaluation.generate import Row, generate, process

pytestmark = pytest.mark.usefixtures("alone")
PATIENCE = 900  # seconds, for machines that do something else beside


@pytest.fixture(scope="module")
def sampler():
    """DATE on a float32 U-Net, where a picture's last bits depend on its batch."""
    backbone = dk.wrap(pipelines.stable_diffusion(), name="tiny")
    return dk.Sampler(
        backbone, dk.DATE(pipelines.Brightness(), rho=1.0, when=dk.every(2)), num_steps=2
    )


ROWS = [
    Row(f"a {what}", 7 * n)
    for n, what in enumerate(
        ("red star", "red circle", "blue star", "blue circle", "green star", "green circle")
    )
]


@pytest.fixture(scope="module")
def whole(sampler, tmp_path_factory):
    """The uninterrupted run of ROWS."""
    return generate(sampler, ROWS, tmp_path_factory.mktemp("whole"), batch_size=4, progress=False)


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes() for path in folder.iterdir() if path.name != "settings.json"
    }


def in_own_process(
    arguments: list[str], environment: dict[str, str] | None = None, stay: int | None = None
) -> multiprocessing.Process:
    """`datekit` in a process of its own, forked from this one, which has the libraries loaded already: importing them takes ten seconds.

    stay: it comes no further than so many pictures, and waits there.
    """
    child = multiprocessing.get_context("fork").Process(
        target=_child, args=(arguments, environment or {}, stay)
    )
    child.start()
    return child


def _child(arguments: list[str], environment: dict[str, str], stay: int | None) -> None:
    torch.set_num_threads(
        1
    )  # first of all: the other threads of this process's pool are not in its copy
    torch.cuda.is_available = lambda: False  # nor can the copy use a GPU that this process has used
    os.environ.update(environment)
    if stay is not None:
        draw, out = module._draw, Path(arguments[-1])
        module._draw = lambda *args: (
            draw(*args) if len(list(out.glob("*.png"))) < stay else time.sleep(PATIENCE)
        )
    sys.exit(main(arguments))


def test_killed_ten_times_and_resumed_by_two_the_bytes_are_those_of_one_uninterrupted_run(tmp_path):
    model, prompts = tmp_path / "model", tmp_path / "prompts.txt"
    pipelines.stable_diffusion().save_pretrained(model)
    prompts.write_text(
        "\n".join(
            f"a {c} {s}"
            for c in ("red", "green", "blue", "cyan")
            for s in ("circle", "square", "star")
        )
        * 4
    )
    command = [
        "generate",
        "--prompts",
        str(prompts),
        "--model",
        str(model),
        "--method",
        "date",
        "--reward",
        "target",
        "--rho",
        "2",
        "--update-every",
        "2",
        "--steps",
        "2",
        "--height",
        "32",
        "--width",
        "32",
        "--batch-size",
        "3",
        "--device",
        "cpu",
        "--out",
    ]
    straight = in_own_process([*command, str(tmp_path / "straight")])
    straight.join(PATIENCE)
    assert straight.exitcode == 0
    rng, out = random.Random(0), tmp_path / "killed"
    for kill in range(10):
        child = in_own_process([*command, str(out)], stay=42)
        wanted, deadline = (
            min(len(list(out.glob("*.png"))) + rng.randrange(4), 42),
            time.monotonic() + PATIENCE,
        )
        while (
            kill
            and len(list(out.glob("*.png"))) < wanted
            and child.is_alive()
            and time.monotonic() < deadline
        ):
            time.sleep(0.002)
        time.sleep(rng.random() * 0.06)  # anywhere: while it starts, samples, writes
        child.kill()
        child.join(PATIENCE)
        assert child.exitcode == -9, "it ended before it could be killed"
        for path in out.glob("*.png"):
            Image.open(path).load()  # whole
    done = len(list(out.glob("*.png")))
    assert 0 < done < len(list((tmp_path / "straight").glob("*.png")))
    both = [
        in_own_process([*command, str(out)], {"RANK": str(rank), "WORLD_SIZE": "2"})
        for rank in (0, 1)
    ]
    for child in both:
        child.join(PATIENCE)
        assert child.exitcode == 0
    assert files(out) == files(tmp_path / "straight")


def test_accelerate_launch_with_two_processes_makes_what_one_makes(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\na blue star\na green square\n")
    command = [
        "generate",
        "--prompts",
        str(prompts),
        "--model",
        "gaussian",
        "--steps",
        "2",
        "--batch-size",
        "1",
        "--out",
    ]
    assert main([*command, str(tmp_path / "one")]) == 0
    launcher = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--main_process_port",
        "0",
        "-m",
        "datekit.cli",
    ]  # without a GPU "--multi_gpu" only means torchrun; "--cpu --num_processes 2" would start one process
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launcher, *command, str(tmp_path / "two")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    assert files(tmp_path / "two") == files(tmp_path / "one")


@settings(max_examples=6)
@given(st.sets(st.integers(0, len(ROWS) - 1), min_size=1), st.integers(1, 3))
def test_whatever_is_missing_and_however_many_share_it_the_bytes_are_the_same(
    sampler, whole, tmp_path_factory, gone, world
):
    out = tmp_path_factory.mktemp("resumed") / "out"
    shutil.copytree(whole, out)
    for n in gone:
        module.picture(out, n).unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD_SIZE", str(world))
        for rank in reversed(range(world)):
            patch.setenv("RANK", str(rank))
            generate(sampler, ROWS, out, batch_size=4, progress=False)
    assert files(out) == files(whole)


def test_stopped_in_the_middle_of_any_write(whole, sampler, tmp_path, monkeypatch):
    """Every file is stopped half written once, as by Ctrl-C; no torn file ever has a final name."""
    write, torn = Path.write_bytes, set()

    def half(path, data):
        name = path.name.split(".")[0]
        if path.suffix == ".partial" and name not in torn:
            torn.add(name)
            write(path, data[: len(data) // 2])
            raise KeyboardInterrupt
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", half)
    drawn = functools.cache(
        functools.partial(
            module._draw, sampler, extra={"negative_prompts": None, "height": None, "width": None}
        )
    )
    monkeypatch.setattr(module, "_draw", lambda sampler, rows, extra: drawn(tuple(rows)))
    for _ in range(len(ROWS) + 2):
        with pytest.raises(KeyboardInterrupt):
            generate(sampler, ROWS, tmp_path / "out", batch_size=4, progress=False)
        if (tmp_path / "out").is_dir():
            assert all(data == files(whole)[name] for name, data in files(tmp_path / "out").items())
    generate(sampler, ROWS, tmp_path / "out", batch_size=4, progress=False)
    assert files(tmp_path / "out") == files(whole)
    assert len(torn) == len(ROWS) + 2


def test_the_pictures_are_those_of_a_run(sampler, whole):
    run = sampler.start(
        [row.prompt for row in ROWS[:4]], seeds=[row.seed for row in ROWS[:4]]
    ).finish(progress=False)
    for n, picture in enumerate(run.images):
        assert np.array_equal(np.asarray(picture), np.asarray(Image.open(whole / f"{n:05d}.png")))
    lines = [json.loads(line) for line in (whole / "metadata.jsonl").read_text().splitlines()]
    assert lines == [
        {"file_name": f"{n:05d}.png", "prompt": row.prompt, "seed": row.seed}
        for n, row in enumerate(ROWS)
    ]
    content = json.loads((whole / "settings.json").read_text())
    assert content["settings"]["sampler"]["method"]["rho"] == 1.0
    assert content["settings"]["versions"]["torch"] == version("torch")


def test_best_of_n_is_generated_too(target, tmp_path):
    best = dk.best_of(dk.Sampler(dk.load("gaussian"), num_steps=2), 3, target)
    generate(best, ROWS[:2], tmp_path, progress=False)
    images = (
        best.start([row.prompt for row in ROWS[:2]], seeds=[row.seed for row in ROWS[:2]])
        .finish(progress=False)
        .images
    )
    assert all(
        np.array_equal(np.asarray(image), np.asarray(Image.open(tmp_path / f"{n:05d}.png")))
        for n, image in enumerate(images)
    )
    content = json.loads((tmp_path / "settings.json").read_text())
    assert content["settings"]["best_of"] == {
        "n": 3,
        "reward": {"reward": "target", "device": "cpu"},
    }


@pytest.mark.parametrize(("change", "message"), [
    ({"sampler": {"method": dk.Fixed()}}, "sampler.method"),
    ({"sampler": {"num_steps": 3}}, "sampler.num_steps was 2, now 3"),
    ({"sampler": {"guidance_scale": 3.0}}, "guidance_scale"),
    ({"batch_size": 3}, "batch_size was 4, now 3"),
    ({"negative_prompt": "dark"}, "negative_prompts was None, now 'dark'"),
    ({"rows": [Row("a red star", 1), *ROWS[1:]]}, "row 0 was .*seed.*now"),
    ({"rows": ROWS[:-1]}, "6 prompts, now there are 5"),
])  # fmt: skip
def test_a_changed_setting_is_refused(sampler, whole, change, message):
    before = files(whole)
    changed = sampler.replace(**change.pop("sampler", {}))
    with pytest.raises(ValueError, match=message):
        generate(
            changed, change.pop("rows", ROWS), whole, progress=False, **({"batch_size": 4} | change)
        )
    assert files(whole) == before


def test_changed_threads_versions_and_strange_folders_are_refused(
    sampler, whole, tmp_path, monkeypatch
):
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    with pytest.raises(ValueError, match=f"threads was {threads}, now {threads + 1}"):
        generate(sampler, ROWS, whole, batch_size=4, progress=False)
    monkeypatch.undo()
    monkeypatch.setattr(dk, "__version__", "99")
    with pytest.raises(ValueError, match=r"versions.datekit was .* now '99'"):
        generate(sampler, ROWS, whole, batch_size=4, progress=False)
    (tmp_path / "holiday.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds pictures, but no settings.json"):
        generate(sampler, ROWS, tmp_path, progress=False)


def test_a_first_command_that_failed_before_any_picture_may_be_mended(sampler, tmp_path):
    with pytest.raises(ValueError, match="height"):
        generate(sampler, ROWS[:2], tmp_path, height=7, progress=False)
    assert (tmp_path / "settings.json").is_file()
    generate(sampler, ROWS[:1], tmp_path, batch_size=3, progress=False)
    assert [path.name for path in tmp_path.glob("*.png")] == ["00000.png"]
    assert len((tmp_path / "metadata.jsonl").read_text().splitlines()) == 1


def test_pictures_are_never_given_other_prompts(sampler, whole, tmp_path):
    """Also where the manifest is lost: settings.json knows what it said. The same prompts write it again."""
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    (out / "metadata.jsonl").unlink()
    with pytest.raises(ValueError, match="manifest was"):
        generate(sampler, [Row("a green square", 1), *ROWS[1:]], out, batch_size=4, progress=False)
    assert not (out / "metadata.jsonl").exists()
    generate(sampler, ROWS, out, batch_size=4, progress=False)
    assert files(out) == files(whole)
    (out / "settings.json").write_text("{}")
    with pytest.raises(ValueError, match="does not say how"):
        generate(sampler, ROWS, out, batch_size=4, progress=False)


def test_an_empty_file_is_no_picture(sampler, whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    module.picture(out, 3).write_bytes(b"")
    generate(sampler, ROWS, out, batch_size=4, progress=False)
    assert files(out) == files(whole)


def test_two_processes_of_different_settings_in_one_empty_folder(sampler, tmp_path, monkeypatch):
    """The second begins after the first has looked at the folder and before it has a picture: the first notices."""
    draw = module._draw

    def interfering(which, rows, extra):
        monkeypatch.setattr(module, "_draw", draw)
        generate(sampler, ROWS, tmp_path, batch_size=3, progress=False)
        return draw(which, rows, extra)

    monkeypatch.setattr(module, "_draw", interfering)
    with pytest.raises(ValueError, match="another process has begun"):
        generate(sampler, ROWS, tmp_path, batch_size=2, progress=False)
    assert json.loads((tmp_path / "settings.json").read_text())["settings"]["batch_size"] == 3


def test_a_second_process_between_the_first_look_and_the_first_picture(
    sampler, tmp_path, monkeypatch
):
    """The first takes its pictures back: none stays under the second's settings."""
    fill = module._fill

    def interfered(*args):
        monkeypatch.setattr(module, "_fill", fill)
        module._settle(
            tmp_path, ROWS, module.settings_of(sampler) | {"batch_size": 3}, {}
        )  # another one settles, no picture being there
        return fill(*args)

    monkeypatch.setattr(module, "_fill", interfered)
    with pytest.raises(ValueError, match="another process has begun"):
        generate(sampler, ROWS, tmp_path, batch_size=2, progress=False)
    assert not list(tmp_path.glob("*.png"))


def test_a_folder_from_before_settings_knew_the_manifest_goes_on(sampler, whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    content = json.loads((out / "settings.json").read_text())
    del content["settings"]["manifest"]
    (out / "settings.json").write_text(json.dumps(content))
    module.picture(out, 5).unlink()
    generate(sampler, ROWS, out, batch_size=4, progress=False)
    assert files(out) == files(whole)


@pytest.mark.parametrize(("options", "message"), [
    (["--best-of", "0"], "--best-of must be a whole number from 1 up, got 0"),
    (["--threads", "-1"], "--threads must be a whole number from 1 up, got -1"),
    (["--threads", "0"], "--threads must be"),
    (["--reward", "TargetReward:0.5"], "cannot make the reward 'TargetReward:0.5'"),
    (["--prompts", "."], "IsADirectoryError"),
    (["--device", "meta"], "with DATEKIT_TRACEBACK=1"),
    (["--out", __file__], "is a file; the pictures need a folder"),
])  # fmt: skip
def test_bad_options_are_a_line_and_no_traceback(tmp_path, capsys, options, message):
    given = {
        "--prompts": "shapes:1",
        "--model": "gaussian",
        "--steps": "1",
        "--out": str(tmp_path / "out"),
    }
    given |= dict(zip(options[::2], options[1::2], strict=True))
    assert main(["generate", *(word for pair in given.items() for word in pair)]) == 2
    told = capsys.readouterr().err
    assert told.startswith("datekit generate: ")
    assert message in told
    assert "Traceback" not in told


def test_nan_is_never_written(tmp_path):
    backbone = dk.load("gaussian")
    backbone.decode = lambda latents: torch.full((len(latents), 3, 32, 32), float("nan"))
    with pytest.raises(dk.NonFiniteError, match=r"row 0 \('a red star', seed 0\)"):
        generate(dk.Sampler(backbone, num_steps=1), ROWS, tmp_path, progress=False)
    assert not list(tmp_path.glob("*.png"))


def test_the_launchers_variables(monkeypatch):
    assert process() == (0, 1)
    monkeypatch.setenv("RANK", "1")
    assert process() == (0, 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert process() == (1, 2)
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(ValueError, match="do not fit"):
        process()


def test_the_command_says_what_is_wrong_in_one_line(tmp_path, capsys):
    (tmp_path / "p.txt").write_text("a red star\n")
    command = [
        "generate",
        "--prompts",
        str(tmp_path / "p.txt"),
        "--out",
        str(tmp_path / "out"),
        "--model",
        "gaussian",
        "--steps",
        "1",
    ]
    assert main([*command, "--method", "fixed", "--rho", "1"]) == 2
    assert "--method fixed does not read --rho" in capsys.readouterr().err
    assert main([*command, "--method", "date"]) == 0
    assert main([*command, "--method", "date", "--rho", "3"]) == 2
    assert "sampler.method.rho was 0.5, now 3.0" in capsys.readouterr().err
    assert (
        main(["generate", "--prompts", str(tmp_path / "none.csv"), "--out", str(tmp_path / "x")])
        == 2
    )
