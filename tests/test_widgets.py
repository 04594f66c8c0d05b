"""The explorer's widgets: moving a control changes the bytes on screen, a moved slider cancels, an error is seen. No browser here."""

from __future__ import annotations

import io
import json
import re
import sys
import threading
import time

import pytest
import torch
from PIL import Image

import datekit as dk
from datekit.cli import main
from studies import bench_explorer as bench
from datekit.widgets.branch import PICTURES

STEPS, PATIENCE = 5, 600  # seconds, for a busy machine


class Gated:
    """A reward that can be made to wait, or to fail."""

    name = "gated"

    def __init__(self):
        self.calls, self.waiting, self.open, self.error = (
            0,
            threading.Event(),
            threading.Event(),
            None,
        )
        self.open.set()

    def __call__(self, images, prompts):
        """As the mean of the red channel."""
        self.calls += 1
        if not self.open.is_set():
            self.waiting.set()
            assert self.open.wait(PATIENCE)
        if self.error:
            raise self.error
        return images[:, 0].mean((1, 2))


@pytest.fixture(scope="module")
def closed_form():
    return dk.load("gaussian")


@pytest.fixture
def make(closed_form, target):
    made = []

    def build(rewards=target, backbone=closed_form, **settings):
        made.append(
            dk.explore(
                backbone, rewards, **{"prompt": "a red circle", "num_steps": STEPS} | settings
            )
        )
        return made[-1].wait(PATIENCE)

    yield build
    for explorer in made:
        assert explorer.worker.wait(PATIENCE)


def screen(explorer):
    """The bytes of everything on screen."""
    return {key: picture.png for key, picture in {**explorer.pictures, **explorer.charts}.items()}


def test_it_runs_at_once_and_shows_both_rows_and_four_charts(make):
    explorer = make()
    assert explorer.error.value == ""
    assert "finished" in explorer.status.value
    assert (explorer.time.value, explorer.progress.value) == (STEPS, STEPS)
    for row in ("run", "fixed"):
        for what in PICTURES:
            assert Image.open(io.BytesIO(explorer.pictures[row, what].png)).width >= 90
    assert explorer.rows["old"].layout.display == "none"
    decoded = Image.open(io.BytesIO(explorer.pictures["run", "decoded"].png))
    frame = explorer.controller.frame().pictures["decoded"]
    assert decoded.resize(frame.size, Image.Resampling.NEAREST).tobytes() == frame.tobytes()


def test_every_picture_has_a_text_alternative_and_every_control_a_name(make):
    explorer = make()
    explorer.sweeping.value = True
    explorer.wait(PATIENCE)
    for picture in [*explorer.pictures.values(), *explorer.charts.values(), *explorer.sweep]:
        if picture.png:
            alt = re.search(r'alt="([^"]+)"', picture.value).group(1)
            assert len(alt) > 20
    assert "Updated in steps 0, 1, 2, 3, 4" in explorer.charts["reward"].words
    controls = explorer.controls
    for control in [
        *controls.fields.values(),
        *controls.weights.values(),
        *controls.cells,
        *explorer.buttons.values(),
    ]:
        assert control.description
        assert control.tooltip
        assert control.tabbable is not False


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rho", 8.0),
        ("seed", 7),
        ("prompt", "a green star"),
        ("method", "fixed"),
        ("method", "random direction"),
        ("anchor", "running"),
        ("guidance_scale", 3.0),
        ("num_steps", 3),
        ("solver", "euler"),
        ("rule", "unnormalised"),
    ],
)
def test_moving_a_control_changes_the_picture_and_moving_it_back_restores_it(make, name, value):
    explorer = make(guidance_scale=2.0)
    before, old = screen(explorer), getattr(explorer.controls, name).value
    explorer.set(**{name: value}).wait(PATIENCE)
    assert explorer.error.value == ""
    assert getattr(explorer.controller.settings, name) == value
    assert explorer.pictures["run", "decoded"].png != before["run", "decoded"]
    explorer.set(**{name: old}).wait(PATIENCE)
    assert screen(explorer)["run", "decoded"] == before["run", "decoded"]


def test_scrubbing_shows_the_recorded_steps(make):
    explorer = make(when=dk.every(2))
    seen = set()
    for i in range(STEPS):
        explorer.time.value = i
        explorer.wait(PATIENCE)
        assert explorer.controller.shown == i
        assert f"step {i} on screen" in explorer.status.value
        assert ("updated here" in explorer.captions["run"].value) == (i % 2 == 0)
        seen.add(explorer.pictures["run", "xt"].png)
    assert len(seen) == STEPS


def test_cells_of_the_strip_and_presets(make):
    explorer = make(when=dk.every(1))
    explorer.controls.cells[1].value = False
    explorer.wait(PATIENCE)
    assert explorer.controller.settings.updates == (0, 2, 3, 4)
    assert [cell.tooltip for cell in explorer.controls.cells[:2]] == [
        "step 0 updates",
        "step 1 does not update",
    ]
    explorer.controls.k.value = 2
    for preset, expected in {
        "every k": (0, 2, 4),
        "early": (0, 1),
        "late": (4,),
        "none": (),
    }.items():
        explorer.controls.presets[preset].click()
        explorer.wait(PATIENCE)
        assert explorer.controller.settings.updates == expected
        assert [i for i, cell in enumerate(explorer.controls.cells) if cell.value] == list(expected)
    explorer.set(method="fixed").wait(PATIENCE)
    assert all(cell.disabled for cell in explorer.controls.cells)
    assert explorer.controls.rho.disabled
    explorer.set(num_steps=3).wait(PATIENCE)
    assert len(explorer.controls.strip.children) == 3


def test_transport(make):
    explorer = make()
    for name, head in {"restart": 0, "step": 1, "back": 0, "play": STEPS}.items():
        explorer.buttons[name].click()
        assert explorer.wait(PATIENCE).controller.head == head
    explorer.time.value = 2
    explorer.buttons["fork here"].click()
    explorer.wait(PATIENCE)
    assert explorer.rows["old"].layout.display is None
    assert [cell.disabled for cell in explorer.controls.cells] == [
        True,
        True,
        False,
        False,
        False,
    ]  # the past is off limits
    before = screen(explorer)
    explorer.set(rho=4.0).wait(PATIENCE)
    assert explorer.pictures["run", "decoded"].png != before["run", "decoded"]
    assert explorer.pictures["old", "decoded"].png == before["old", "decoded"]
    explorer.buttons["join"].click()
    assert explorer.wait(PATIENCE).rows["old"].layout.display == "none"


def test_the_menu_has_soft_tokens_where_they_ship(make, shapes, reward):
    assert not any("SoftREPA" in name for name in make().controls.method.options)
    explorer = make(reward, shapes, num_steps=1, start=False)
    assert {"SoftREPA", "DATE + SoftREPA"} < {*explorer.controls.method.options}
    explorer.set(rule="unnormalised").wait(PATIENCE)
    assert explorer.controls.scale.layout.display is None


def test_a_sweep_shows_seven_radii(make):
    explorer = make()
    assert explorer.sweep_row.layout.display == "none"
    explorer.sweeping.value = True
    explorer.wait(PATIENCE)
    assert explorer.sweep_row.layout.display is None
    assert len({picture.png for picture in explorer.sweep}) == 7
    found = explorer.controller.swept()
    assert [
        f"h {h:.3f}" in picture.caption
        for h, picture in zip(found.h[:, 0].tolist(), explorer.sweep, strict=True)
    ] == [True] * 7


def test_moving_a_slider_during_a_long_computation_cancels_and_restarts(make):
    gated = Gated()
    explorer = make(gated, num_steps=40, start=False)
    gated.open.clear()
    explorer.buttons["end"].click()
    assert gated.waiting.wait(PATIENCE)  # in the middle of the first step
    old = explorer.controller.branch()
    explorer.set(rho=2.0)
    gated.open.set()
    explorer.wait(PATIENCE)
    assert explorer.controller.settings.rho == 2.0
    assert old.taken <= 2  # of 40: given up
    assert explorer.controller.branch().taken == 40
    assert explorer.error.value == ""


def test_pause_stops_a_long_computation(make):
    gated = Gated()
    explorer = make(gated, num_steps=40, start=False)
    gated.open.clear()
    explorer.buttons["play"].click()
    assert gated.waiting.wait(PATIENCE)
    explorer.buttons["pause"].click()
    gated.open.set()
    explorer.wait(PATIENCE)
    assert explorer.controller.head <= 2
    assert explorer.controller.paused


def test_nothing_that_is_asked_for_gets_lost(make):
    """Many changes faster than they can be computed: all of them hold in the end."""
    explorer = make()
    for n in range(10):
        explorer.set(rho=0.1 + n, seed=n)
    explorer.set(prompt="a star", guidance_scale=2.0).wait(PATIENCE)
    settings = explorer.controller.settings
    assert (settings.rho, settings.seed, settings.prompt, settings.guidance_scale) == (
        9.1,
        9,
        "a star",
        2.0,
    )
    assert "step 5 on screen" in explorer.status.value


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_steps", 5000, "num_steps"),
        ("seed", -1, "seed"),
        ("prompt", " ", "prompt is empty"),
    ],
)
def test_a_setting_that_does_not_fit_is_an_error_on_screen_until_it_is_mended(
    make, name, value, message
):
    explorer = make()
    before, old = screen(explorer), getattr(explorer.controls, name).value
    explorer.set(**{name: value}).wait(PATIENCE)
    assert 'role="alert"' in explorer.error.value
    assert message in explorer.error.value
    assert screen(explorer) == before
    explorer.set(rho=3.0).wait(PATIENCE)  # another control does not make it good
    assert message in explorer.error.value
    explorer.buttons["step"].click()  # nor does a button, which goes by the settings before
    assert message in explorer.wait(PATIENCE).error.value
    explorer.set(**{name: old}).wait(PATIENCE)
    assert explorer.error.value == ""
    assert explorer.controller.settings.rho == 3.0


@pytest.mark.parametrize(
    "error",
    [ValueError("no <b>such</b> picture"), dk.NonFiniteError("NaN"), MemoryError("too large")],
)
def test_an_error_of_the_reward_is_on_screen_and_the_next_change_starts_afresh(make, error):
    gated = Gated()
    explorer = make(gated)
    gated.error = error
    explorer.set(seed=3).wait(PATIENCE)
    assert type(error).__name__ in explorer.error.value
    assert "Traceback" in explorer.error.value
    assert "<b>such" not in explorer.error.value
    gated.error = None
    explorer.set(rho=2.0).wait(PATIENCE)
    assert explorer.error.value == ""
    assert explorer.controller.done
    assert explorer.controller.branch().run.seeds == (3,)


def test_a_reward_that_gives_nan_is_named(make):
    mean = lambda images, prompts: images.mean((1, 2, 3))
    explorer = make(
        {"fine": mean, "broken": lambda images, prompts: mean(images, prompts) * torch.nan}
    )
    assert "non-finite" in explorer.error.value


def test_exports_are_offered_as_links_and_lines(make):
    explorer = make()
    for name, kind in {"PNG": "image/png", "GIF": "image/gif", "Python": "text/x-python"}.items():
        explorer.exports[name].click()
        explorer.wait(PATIENCE)
        assert f"data:{kind};base64," in explorer.taken.value
    assert "import datekit as dk" in explorer.taken.value


def test_a_worker_that_cannot_even_report_ends_loudly_and_nobody_waits_for_it(make, monkeypatch):
    explorer, seen = make(), []
    monkeypatch.setattr(threading, "excepthook", lambda args: seen.append(args.exc_type))
    monkeypatch.setattr(explorer.worker, "fail", lambda error: 1 / 0)
    explorer.set(rho=2.0).wait(PATIENCE)
    until = time.monotonic() + PATIENCE
    while not seen and time.monotonic() < until:
        time.sleep(0.02)
    assert seen == [ZeroDivisionError]


def test_what_it_is_called_and_where_it_starts(make, closed_form, target):
    explorer = make(rho=100.0, method="random direction")
    assert (
        repr(explorer) == "Explorer('a red circle', seed 0, random direction, rho 100, guidance 1)"
    )
    assert explorer.controls.rho.value == 100.0
    with pytest.raises(ValueError, match="unknown control 'radius'"):
        explorer.set(radius=1.0)
    with pytest.raises(ValueError, match="Did you mean 'target'"):
        explorer.set(weights={"tarket": 1.0})
    with pytest.raises(ValueError, match="logarithmic"):
        dk.explore(closed_form, target, rho=0.0)
    with pytest.raises(TypeError, match="unexpected keyword"):
        dk.explore(closed_form, target, radius=1.0)
    gated = Gated()
    slow = make(gated, start=False)
    gated.open.clear()
    slow.buttons["play"].click()
    assert gated.waiting.wait(PATIENCE)
    with pytest.raises(TimeoutError, match="sampling step"):
        slow.wait(0.01)
    gated.open.set()


def test_only_core_widgets_are_used(make):
    """So that Colab, Voila, JupyterLab and Notebook 7 show it with nothing to install."""
    seen, waiting = set(), [make()]
    while waiting:
        widget = waiting.pop()
        seen.add(widget._model_module)
        waiting += [
            *getattr(widget, "children", ()),
            *([widget.layout] if hasattr(widget, "layout") else []),
        ]
    assert seen == {"@jupyter-widgets/base", "@jupyter-widgets/controls"}


def test_its_speed_is_measured_into_a_file(tmp_path, monkeypatch, capsys):
    measure = bench.bench
    monkeypatch.setattr(
        bench, "bench", lambda out: measure(out, 1, model="gaussian", reward="target")
    )
    assert main(["bench", "--explorer", "--out", str(tmp_path / "explorer.json")]) == 0
    rows = json.loads((tmp_path / "explorer.json").read_text())["rows"]
    assert set(bench.GOALS) < set(rows)
    for row in rows.values():
        assert 0 < row["seconds"] <= row["slowest"]
    assert (
        f"| scrub to a step | {1000 * rows['scrub to a step']['seconds']:.0f} |"
        in capsys.readouterr().out
    )


def test_without_ipywidgets_it_says_what_to_install(monkeypatch, closed_form, target):
    for name in ("datekit.widgets.view", "datekit.widgets.controls"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(ImportError, match=r"pip install 'datekit\[lab\]'"):
        dk.explore(closed_form, target)
