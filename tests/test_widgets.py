"""The explorer's widgets: a control changes what is on screen, a moved slider cancels."""

from __future__ import annotations

import io
import re
import sys
import threading
import time

import pytest
import torch
from ipywidgets import Widget
from PIL import Image

import datekit as dk
from datekit.widgets.pictures import PICTURES

STEPS, PATIENCE = 5, 600  # seconds, for a busy machine


class Gated:
    """A reward that can be made to wait, or to fail; else the mean of the red channel."""

    name = "gated"

    def __init__(self):
        self.waiting, self.open, self.error = threading.Event(), threading.Event(), None
        self.open.set()

    def __call__(self, images, prompts):
        if not self.open.is_set():
            self.waiting.set()
            assert self.open.wait(PATIENCE)
        if self.error:
            raise self.error
        return images[:, 0].mean((1, 2))


class _Watched(dk.GaussianBackbone):
    """The closed-form model, which notices when two threads ask it at once."""

    def __init__(self):
        super().__init__()
        self.asked, self.most, self.threads = 0, 0, set()

    def predict(self, xt, t, cond):
        self.asked += 1
        self.most = max(self.most, self.asked)
        self.threads.add(threading.current_thread())  # the thread itself: an ident is given again
        time.sleep(0.001)
        try:
            return super().predict(xt, t, cond)
        finally:
            self.asked -= 1


@pytest.fixture(scope="module")
def closed_form():
    return dk.load("gaussian")


@pytest.fixture
def make(closed_form, target):
    made = []

    def build(rewards=target, backbone=closed_form, **settings):
        settings = {"prompt": "a red circle", "num_steps": STEPS} | settings
        made.append(dk.explore(backbone, rewards, **settings))
        return made[-1].wait(PATIENCE)

    yield build
    for explorer in made:
        assert explorer.worker.wait(PATIENCE)


def screen(explorer):
    """The bytes of everything on screen."""
    everything = {**explorer.pictures, **explorer.charts}
    return {key: picture.shown[0] for key, picture in everything.items()}


def decoded(explorer, row="run"):
    return explorer.pictures[row, "decoded"].shown[0]


def test_it_runs_at_once_and_shows_both_rows_and_four_charts(make):
    explorer = make()
    assert explorer.error.value == ""
    assert "finished" in explorer.status.value
    assert (explorer.time.value, explorer.progress.value) == (STEPS, STEPS)
    for row in ("run", "fixed"):
        for what in PICTURES:
            shown = explorer.pictures[row, what].shown[0]
            assert Image.open(io.BytesIO(shown)).width >= 90
    assert explorer.rows["old"].layout.display == "none"
    frame = explorer.controller.frame().pictures["decoded"]
    shown = Image.open(io.BytesIO(decoded(explorer)))
    assert shown.resize(frame.size, Image.Resampling.NEAREST).tobytes() == frame.tobytes()


def test_everything_has_a_text_alternative_or_a_name_and_is_a_core_widget(make):
    """So that Colab, Voila, JupyterLab and Notebook 7 show it with nothing to install."""
    explorer = make()
    explorer.sweeping.value = True
    explorer.wait(PATIENCE)
    for picture in [*explorer.pictures.values(), *explorer.charts.values(), *explorer.sweep]:
        if picture.shown[0]:
            assert len(re.search(r'alt="([^"]+)"', picture.value).group(1)) > 20
    assert "Updated in steps 0, 1, 2, 3, 4" in explorer.charts["reward"].value
    controls = explorer.controls
    named = [*controls.fields.values(), *controls.weights.values(), *controls.cells]
    for control in [*named, *explorer.buttons.values()]:
        assert control.description
        assert control.tooltip
    modules, waiting = set(), [explorer]
    while waiting:
        widget = waiting.pop()
        modules.add(widget._model_module)
        waiting += [*getattr(widget, "children", ()), *filter(None, [getattr(widget, "layout", 0)])]
    assert modules == {"@jupyter-widgets/base", "@jupyter-widgets/controls"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rho", 8.0),
        ("rho", 100.0),  # beyond the slider's end
        ("seed", 7),
        ("prompt", "a green star"),
        ("method", "Fixed"),
        ("method", "RandomDirection"),
        ("anchor", "running"),
        ("guidance_scale", 3.0),
        ("num_steps", 3),
        ("solver", "euler"),
        ("rule", "Unnormalised"),
    ],
)
def test_moving_a_control_changes_the_picture_and_moving_it_back_restores_it(make, name, value):
    explorer = make(guidance_scale=2.0)
    before, old = decoded(explorer), explorer.controls.fields[name].value
    explorer.set(**{name: value}).wait(PATIENCE)
    assert explorer.error.value == ""
    settings = explorer.controller.settings
    assert (getattr(settings, name) if hasattr(settings, name) else settings.value(name)) == value
    assert decoded(explorer) != before
    explorer.set(**{name: old}).wait(PATIENCE)
    assert decoded(explorer) == before


def test_scrubbing_shows_the_recorded_steps(make):
    explorer = make(when=dk.every(2))
    seen = set()
    for i in range(STEPS):
        explorer.time.value = i
        explorer.wait(PATIENCE)
        assert explorer.controller.shown == i
        assert f"step {i} on screen" in explorer.status.value
        assert ("updated here" in explorer.captions["run"].value) == (i % 2 == 0)
        seen.add(explorer.pictures["run", "xt"].shown[0])
    assert len(seen) == STEPS


def test_cells_of_the_strip_and_presets(make):
    explorer = make(when=dk.every(1))
    controls = explorer.controls
    controls.cells[1].value = False
    explorer.wait(PATIENCE)
    assert explorer.controller.settings.updates == (0, 2, 3, 4)
    assert controls.cells[1].tooltip == "step 1 does not update"
    controls.k.value = 2
    presets = {"every k": (0, 2, 4), "early": (0, 1), "late": (4,), "none": ()}
    for preset, expected in presets.items():
        controls.presets[preset].click()
        explorer.wait(PATIENCE)
        assert explorer.controller.settings.updates == expected
        assert [i for i, cell in enumerate(controls.cells) if cell.value] == list(expected)
    explorer.set(method="Fixed").wait(PATIENCE)
    assert all(cell.disabled for cell in controls.cells)
    assert controls.fields["rho"].layout.display == "none"
    explorer.set(num_steps=3).wait(PATIENCE)
    assert len(controls.strip.children) == 3


def test_transport_fork_and_sweep(make):
    explorer = make()
    for name, head in {"restart": 0, "step": 1, "back": 0, "play": STEPS}.items():
        explorer.buttons[name].click()
        assert explorer.wait(PATIENCE).controller.head == head
    explorer.time.value = 2
    explorer.buttons["fork here"].click()
    explorer.wait(PATIENCE)
    assert explorer.rows["old"].layout.display is None
    assert [cell.disabled for cell in explorer.controls.cells] == [True] * 2 + [False] * 3
    before = decoded(explorer), decoded(explorer, "old")
    explorer.set(rho=4.0).wait(PATIENCE)
    assert (decoded(explorer) != before[0], decoded(explorer, "old")) == (True, before[1])
    explorer.buttons["join"].click()
    assert explorer.wait(PATIENCE).rows["old"].layout.display == "none"
    assert explorer.sweep_row.layout.display == "none"
    explorer.sweeping.value = True
    explorer.wait(PATIENCE)
    assert explorer.sweep_row.layout.display is None
    assert len({picture.shown[0] for picture in explorer.sweep}) == 7
    for h, picture in zip(explorer.controller.swept().h[:, 0], explorer.sweep, strict=True):
        assert f"h {h:.3f}" in picture.value


def test_a_change_during_a_long_computation_cancels_it_and_pause_stops_it(make):
    gated = Gated()
    explorer = make(gated, num_steps=40, start=False)
    gated.open.clear()
    explorer.buttons["end"].click()
    assert gated.waiting.wait(PATIENCE)  # in the middle of the first step
    with pytest.raises(TimeoutError, match="sampling step"):
        explorer.wait(0.01)
    old = explorer.controller.library.run(explorer.controller.timeline)
    explorer.set(rho=2.0)
    gated.open.set()
    explorer.wait(PATIENCE)
    assert old.state.i <= 2  # of 40: given up
    controller = explorer.controller
    assert controller.settings.value("rho") == 2.0
    assert controller.library.run(controller.timeline).done
    explorer.buttons["restart"].click()
    explorer.set(seed=5).wait(PATIENCE)
    gated.waiting.clear()
    gated.open.clear()
    explorer.buttons["play"].click()
    assert gated.waiting.wait(PATIENCE)
    explorer.buttons["pause"].click()
    gated.open.set()
    explorer.wait(PATIENCE)
    assert controller.head <= 2
    assert controller.paused


def test_nothing_that_is_asked_for_gets_lost(make):
    """Many changes faster than they can be computed: all of them hold in the end."""
    explorer = make()
    for n in range(10):
        explorer.set(rho=0.1 + n, seed=n)
    explorer.set(prompt="a star", guidance_scale=2.0).wait(PATIENCE)
    settings = explorer.controller.settings
    assert (settings.value("rho"), settings.seed) == (9.1, 9)
    assert (settings.prompt, settings.guidance_scale) == ("a star", 2.0)
    assert "step 5 on screen" in explorer.status.value


@pytest.mark.parametrize(
    ("name", "value", "message"), [("num_steps", 5000, "num_steps"), ("prompt", " ", "is empty")]
)
def test_what_does_not_fit_is_an_error_on_screen_until_it_is_mended(make, name, value, message):
    explorer = make()
    before, old = screen(explorer), explorer.controls.fields[name].value
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
    assert explorer.controller.settings.value("rho") == 3.0


@pytest.mark.parametrize("error", [ValueError("no <b>such</b> picture"), MemoryError("too large")])
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


def test_a_reward_that_gives_nan_is_named(make):
    def mean(images, prompts):
        return images.mean((1, 2, 3))

    def broken(images, prompts):
        return mean(images, prompts) * torch.nan

    assert "non-finite" in make({"fine": mean, "broken": broken}).error.value


def test_exports_are_offered_as_links_and_lines(make):
    explorer = make()
    for name, kind in {"PNG": "image/png", "GIF": "image/gif", "Python": "text/x-python"}.items():
        explorer.exports[name].click()
        explorer.wait(PATIENCE)
        assert f"data:{kind};base64," in explorer.taken.value
    assert "import datekit as dk" in explorer.taken.value


def test_explorers_of_one_model_take_turns(target):
    """... since a method such as EBCA changes its layers while it looks."""
    backbone = _Watched()
    settings = {"prompt": "a red circle", "num_steps": 6}
    for explorer in [dk.explore(backbone, target, seed=n, **settings) for n in range(2)]:
        assert explorer.wait(PATIENCE).error.value == ""
        assert explorer.controller.done
    assert (backbone.most, len(backbone.threads)) == (1, 2)


def test_close_leaves_no_widget_behind(make):
    before = {*Widget.widgets}
    explorer = make()
    explorer.close()
    assert {*Widget.widgets} == before


def test_a_worker_that_cannot_even_report_ends_loudly_and_nobody_waits_for_it(make, monkeypatch):
    explorer, seen = make(), threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda args: seen.set())
    monkeypatch.setattr(explorer.worker, "fail", lambda error: 1 / 0)
    explorer.set(rho=2.0).wait(PATIENCE)
    assert seen.wait(PATIENCE)


def test_what_it_is_called_and_what_is_refused_at_the_door(make, closed_form, target):
    explorer = make(rho=100.0, method="RandomDirection")
    said = "Explorer('a red circle', seed 0, RandomDirection, rho 100, guidance 1)"
    assert repr(explorer) == said
    assert explorer.controls.fields["rho"].value == 100.0
    with pytest.raises(ValueError, match="unknown control 'radius'"):
        explorer.set(radius=1.0)
    with pytest.raises(ValueError, match="Did you mean 'target'"):
        explorer.set(weights={"tarket": 1.0})
    with pytest.raises(ValueError, match="logarithmic"):
        dk.explore(closed_form, target, rho=0.0)
    with pytest.raises(ValueError, match="unknown setting 'radius'"):
        dk.explore(closed_form, target, radius=1.0)


def test_without_ipywidgets_it_says_what_to_install(monkeypatch, closed_form, target):
    for name in ("datekit.widgets.view", "datekit.widgets.controls"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(ImportError, match=r"pip install 'datekit\[lab\]'"):
        dk.explore(closed_form, target)
