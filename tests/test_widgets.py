"""The explorer's widgets: a control changes what is on screen, a moved slider cancels."""

from __future__ import annotations

import re
import threading
import time

import pytest
from ipywidgets import Widget

import datekit as dk
from datekit.widgets import worker

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

    asked = most = 0

    def predict(self, xt, t, cond):
        self.asked += 1
        self.most = max(self.most, self.asked)
        time.sleep(0.001)
        answer = super().predict(xt, t, cond)
        self.asked -= 1
        return answer


@pytest.fixture(scope="module")
def closed_form():
    return dk.load("gaussian")


@pytest.fixture
def make(closed_form, target, monkeypatch):
    monkeypatch.setattr(worker, "QUICK", 0.0)  # nothing is computed that was not asked for
    made = []

    def build(rewards=target, backbone=closed_form, **settings):
        settings = {"prompt": "a red circle", "num_steps": STEPS} | settings
        made.append(dk.explore(backbone, rewards, **settings))
        return made[-1].wait(PATIENCE)

    yield build
    for explorer in made:
        assert explorer.worker.wait(PATIENCE)


def seen(explorer, row="run"):
    return explorer.pictures[row].value


def press(explorer, name):
    (explorer.buttons | explorer.exports)[name].click()
    return explorer.wait(PATIENCE)


def test_everything_has_a_text_alternative_or_a_name_and_is_a_core_widget(make):
    """So that Colab, Voila, JupyterLab and Notebook 7 show it with nothing to install."""
    explorer = make()
    assert explorer.error.value == explorer.inside["tokens"].value == ""
    assert "the final picture" in explorer.status.value
    explorer.folds["inside this step"].value = True
    explorer.wait(PATIENCE)
    for picture in (*explorer.pictures.values(), explorer.chart, *explorer.inside.values()):
        if picture.layout.display != "none":
            assert len(re.search(r'alt="([^"]+)"', picture.value).group(1)) > 20
    assert explorer.pictures["old"].layout.display == "none"
    assert "Updated in steps 0, 1, 2, 3, 4" in explorer.chart.value
    controls = explorer.controls
    numbers = [controls.rho, explorer.time, explorer.at]
    pressed = [*controls.cells, *explorer.buttons.values(), *explorer.exports.values()]
    for control in [*controls.fields.values(), *numbers, *pressed]:
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
        ("rho", 100.0),
        ("rho", 0.0),  # beyond the slider's end
        ("seed", 7),
        ("prompt", "a green star"),
        ("method", "Fixed"),
        ("method", "RandomDirection"),
        ("method", "FKSteering"),
        ("method", "ReNO"),
        ("anchor", "running"),
        ("guidance_scale", 3.0),
        ("num_steps", 3),
        ("solver", "euler"),
    ],
)
def test_a_setting_changes_the_picture_and_its_control_restores_it(make, name, value):
    explorer = make(guidance_scale=2.0)
    before, control = seen(explorer), explorer.controls.fields[name]
    old = control.value
    explorer.set(**{name: value}).wait(PATIENCE)
    assert explorer.error.value == ""
    assert explorer.controller.settings.value(name) == control.value == value
    assert seen(explorer) != before
    control.value = old
    explorer.wait(PATIENCE)
    assert seen(explorer) == before


def test_scrubbing_shows_the_recorded_steps(make):
    explorer, pictures = make(when=dk.every(2)), set()
    for i in range(STEPS):
        explorer.time.value = i
        explorer.wait(PATIENCE)
        assert f"step {i} of {STEPS}" in explorer.status.value
        assert ("updated here" in seen(explorer)) == (i % 2 == 0)
        pictures.add(seen(explorer))
    assert len(pictures) == STEPS


def test_cells_of_the_strip_and_presets(make):
    explorer = make()
    controls = explorer.controls
    controls.cells[1].value = False
    explorer.wait(PATIENCE)
    assert explorer.controller.settings.updates == (0, 2, 3, 4)
    assert controls.cells[1].tooltip == "step 1 does not update"
    controls.k.value = 2
    presets = {"every k": (0, 2, 4), "early": (0, 1), "late": (4,), "every step": (0, 1, 2, 3, 4)}
    for preset, expected in presets.items():
        controls.presets[preset].click()
        explorer.wait(PATIENCE)
        assert explorer.controller.settings.updates == expected
        assert [i for i, cell in enumerate(controls.cells) if cell.value] == list(expected)
    explorer.set(when=None).wait(PATIENCE)
    controls.cells[3].value = True
    explorer.wait(PATIENCE)
    assert explorer.controller.updates == (3,)
    explorer.set(method="Fixed").wait(PATIENCE)
    assert all(cell.disabled for cell in controls.cells)
    assert controls.fields["rho"].layout.display == "none"
    explorer.set(num_steps=3).wait(PATIENCE)
    assert [cell.layout.display for cell in controls.cells] == [None] * 3 + ["none"] * 2
    assert explorer.time.max == 3


def test_fork_and_join(make):
    explorer = make()
    explorer.time.value = 2
    press(explorer, "fork here")
    assert explorer.pictures["old"].layout.display is None
    assert [cell.disabled for cell in explorer.controls.cells] == [True] * 2 + [False] * 3
    before = seen(explorer), seen(explorer, "old")
    explorer.set(rho=4.0).wait(PATIENCE)
    assert (seen(explorer) != before[0], seen(explorer, "old")) == (True, before[1])
    explorer.time.value = STEPS
    assert "from step 2: DATE, rho 4" in explorer.wait(PATIENCE).status.value
    assert press(explorer, "join").pictures["old"].layout.display == "none"


def test_a_change_during_a_long_computation_cancels_it_and_an_earlier_step_stops_it(make):
    gated = Gated()
    explorer = make(gated, num_steps=40)
    controller = explorer.controller
    before = seen(explorer)
    gated.open.clear()
    explorer.set(seed=5)
    assert gated.waiting.wait(PATIENCE)  # in the middle of the first step
    with pytest.raises(TimeoutError, match="at work"):
        explorer.wait(0.01)
    assert "sampling step 0" in explorer.status.value
    assert seen(explorer) == before  # it stays, pale, until there is another one
    assert "datekit-pale" in explorer.pictures["run"]._dom_classes
    old = controller.run()
    explorer.set(rho=2.0)
    gated.open.set()
    explorer.wait(PATIENCE)
    assert old.state.i <= 2  # of 40: given up
    assert (controller.settings.value("rho"), controller.head) == (2.0, 40)
    assert "datekit-pale" not in explorer.pictures["run"]._dom_classes
    gated.waiting.clear()
    gated.open.clear()
    explorer.set(seed=6)
    assert gated.waiting.wait(PATIENCE)
    explorer.time.value = 1
    gated.open.set()
    explorer.wait(PATIENCE)
    assert controller.shown == 1
    assert controller.run().state.i <= 3  # of 40: given up


def test_a_change_cancels_a_search_between_two_noises(make):
    gated = Gated()
    explorer = make(gated)
    gated.open.clear()
    explorer.set(method="ReNO", iterations=100)
    assert gated.waiting.wait(PATIENCE)
    searches = [r for r in explorer.controller.runs.values() if isinstance(r, dk.NoiseSearch)]
    explorer.set(method="Fixed")
    gated.open.set()
    explorer.wait(PATIENCE)
    assert [len(search.rewards) for search in searches] == [1]  # of 101: given up


def test_a_particle_is_named_and_the_inside_of_its_step_opens(make):
    explorer = make(method="FKSteering")
    assert re.search(r"particle \d of 4.*effective sample size", seen(explorer))
    assert "particle" not in seen(explorer, "fixed")
    explorer.folds["inside this step"].value = True
    explorer.wait(PATIENCE)
    assert (explorer.error.value, "img" in explorer.inside["chain"].value) == ("", True)


def test_nothing_that_is_asked_for_gets_lost(make):
    """Many changes faster than they can be computed: all of them hold in the end."""
    explorer = make()
    for n in range(10):
        explorer.set(rho=0.1 + n, seed=n)
    explorer.set(prompt="a star", guidance_scale=2.0).wait(PATIENCE)
    settings = explorer.controller.settings
    assert (settings.value("rho"), settings.seed) == (9.1, 9)
    assert (settings.prompt, settings.guidance_scale) == ("a star", 2.0)


def test_the_slider_of_rho_gives_numbers_that_can_be_read_and_follows_what_is_typed(make):
    explorer = make()
    controls = explorer.controls
    controls.rho.value = 1.0000000000000002
    assert explorer.wait(PATIENCE).controller.settings.value("rho") == 1
    assert controls.fields["rho"].value == 1
    controls.fields["rho"].value = 0.3
    assert explorer.wait(PATIENCE).controls.rho.value == 0.3
    controls.rho.value = 2**-0.75
    explorer.wait(PATIENCE)
    assert re.search(r"rho=0\.595[,)]", press(explorer, "Python").taken.value)


def test_the_menu_of_methods_begins_with_three(make):
    menu = make().controls.fields["method"]
    first = [name for _, name in menu.options]
    assert first[:3] == ["DATE", "Fixed", "RandomDirection"]
    assert len(first) == 4
    menu.value = first[3]
    deadline = time.monotonic() + PATIENCE
    while len(menu.options) == 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert {"UniversalGuidance", "FKSteering", "ReNO"} <= {name for _, name in menu.options}
    assert menu.value == "DATE"


def test_what_was_taken_away_says_when_it_is_out_of_date(make):
    explorer = make()
    fresh = press(explorer, "PNG").taken.value
    assert "DATE, rho 0.5, every step" in fresh
    stale = explorer.set(rho=2.0).wait(PATIENCE).taken.value
    assert stale.endswith(fresh)
    assert len(stale) > len(fresh)
    assert explorer.set(rho=0.5).wait(PATIENCE).taken.value == fresh


def test_a_page_without_widgets_has_the_picture_and_says_how_to_run_it(make):
    explorer = make()
    page = explorer._repr_mimebundle_()["text/html"]
    assert explorer.pictures["run"].value in page
    assert "run this cell" in page


def test_a_step_beyond_the_run_is_refused_and_its_number_goes_back(make):
    explorer = make()
    explorer.at.value = 99
    assert "0 to 5" in explorer.wait(PATIENCE).error.value
    assert explorer.at.value == explorer.time.value == STEPS


@pytest.mark.parametrize(
    ("name", "value"), [("num_steps", 5000), ("seed", -3), ("rho", -1.0), ("inner_steps", 0)]
)
def test_what_does_not_fit_is_an_error_and_its_control_goes_back(make, name, value):
    explorer = make()
    before, control = seen(explorer), explorer.controls.fields[name]
    old, control.value = control.value, value
    assert 'role="alert"' in explorer.wait(PATIENCE).error.value
    assert str(value) in explorer.error.value
    assert (seen(explorer), control.value) == (before, old)
    explorer.worker.do(lambda: time.sleep(0.2))  # so that both wait in line
    assert str(value) in explorer.set(**{name: value}).set(rho=2.0).wait(PATIENCE).error.value
    assert explorer.set(rho=3.0).wait(PATIENCE).error.value == ""
    assert explorer.controller.settings.value("rho") == 3.0


@pytest.mark.parametrize("error", [ValueError("no <b>such</b> picture"), MemoryError("too large")])
def test_an_error_of_the_reward_is_on_screen_and_the_next_change_starts_afresh(make, error):
    gated = Gated()
    explorer = make(gated)
    gated.error = error
    explorer.set(seed=3).wait(PATIENCE)
    assert type(error).__name__ in explorer.error.value
    assert "Traceback" in explorer.traceback.value
    assert "<b>such" not in explorer.error.value + explorer.traceback.value
    gated.error = None
    explorer.set(rho=2.0).wait(PATIENCE)
    assert explorer.error.value == explorer.traceback.value == ""
    assert explorer.controller.head == STEPS


def test_exports_are_offered_as_links_and_lines(make):
    explorer = make()
    for name, kind in {"PNG": "image/png", "GIF": "image/gif", "Python": "text/x-python"}.items():
        assert f"data:{kind};base64," in press(explorer, name).taken.value
    assert "import datekit as dk" in explorer.taken.value


def test_explorers_of_one_model_take_turns(target):
    """... since a method such as EBCA changes its layers while it looks."""
    backbone = _Watched()
    settings = {"prompt": "a red circle", "num_steps": 6}
    for explorer in [dk.explore(backbone, target, seed=n, **settings) for n in range(2)]:
        assert explorer.wait(PATIENCE).error.value == ""
        assert explorer.controller.head == 6
    assert backbone.most == 1


def test_close_leaves_no_widget_and_no_thread_behind(make):
    before = {*Widget.widgets}
    explorer = make()
    explorer.close()
    explorer.worker._thread.join(PATIENCE)
    assert {*Widget.widgets} == before
    assert not explorer.worker._thread.is_alive()


def test_a_worker_that_cannot_even_report_ends_loudly_and_nobody_waits_for_it(make, monkeypatch):
    explorer, ended = make(), threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda args: ended.set())
    monkeypatch.setattr(explorer.worker, "fail", lambda error: 1 / 0)
    explorer.set(rho=2.0).wait(PATIENCE)
    assert ended.wait(PATIENCE)


def test_what_it_is_called_and_what_is_refused_at_the_door(make, closed_form, target):
    explorer = make(rho=100.0, method="RandomDirection")
    said = "Explorer('a red circle', seed 0, RandomDirection, rho 100, every step, guidance 1)"
    assert repr(explorer) == said
    assert "unknown setting &#x27;radius&#x27;" in explorer.set(radius=1.0).wait().error.value
    with pytest.raises(ValueError, match="rho"):
        dk.explore(closed_form, target, rho=-1.0)
