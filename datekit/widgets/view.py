"""The explorer on screen: core ipywidgets that show a `Controller` and pass on the user's acts."""

from __future__ import annotations

import base64
import html
import traceback
from collections.abc import Callable, Iterable
from functools import partial

import ipywidgets as widgets
from matplotlib.figure import Figure

from .. import analysis, plot
from ..run import Run
from ..types import StepInfo
from .controller import EXAMPLES, ROWS, Controller, Frame
from .controls import Controls, button, looks, row
from .export import encode, gif, png, python
from .worker import Worker

SIDE = 420  # most pixels of a picture on screen
EXPORTS = {  # name: type, file, what makes it
    "PNG": ("image/png", "explorer.png", png),
    "GIF": ("image/gif", "explorer.gif", gif),
    "Python": ("text/x-python", "explorer.py", python),
}
INSIDE = {  # figure: its instrument, its size in inches
    "diagram": (lambda run, reward: _update(run), (8.4, 2.4)),
    "chain": (analysis.chain_rule, (3.4, 4.4)),
    "tokens": (analysis.token_shares, (4.8, 3.4)),
}
STYLE = """<style>.datekit-pale {opacity: 0.4}
body[data-jp-theme-light="false"] .datekit-lines img, html[theme="dark"] .datekit-lines img {
filter: invert(1) hue-rotate(180deg)}</style>"""  # lines on white become lines on black
AGAIN = "Nothing moves? Then no kernel is running: run this cell again (Shift+Enter)."
STALE = "<b>Out of date</b>: this was made before the last change; press again.<br>"


class Explorer(widgets.VBox):
    """The explorer; `dk.explore` makes it. It computes in a thread of its own.

    controller: what it shows;
    controls: the widgets of the settings;
    time, at, play: the slider and the number of the step on screen, and what moves it;
    buttons, exports, examples: what the user presses;
    pictures: by the names of `ROWS`;
    chart: the reward by step;
    inside: figures by the names of `INSIDE`;
    folds: buttons that show or hide what is not seen at first, by its title;
    status, error, hint, traceback, taken: what is said.
    """

    _ready = False

    def __init__(self, controller: Controller) -> None:
        self.controller = controller
        self.controls = controls = Controls(controller, self.set)
        self._make_buttons()
        self.status, self.error, self.hint = (widgets.HTML() for _ in range(3))
        self.traceback, self.taken = widgets.HTML(), widgets.HTML()
        self.pictures = {name: _box(SIDE) for name in ROWS}
        self.inside = {name: _box(100 * size[0]) for name, (_, size) in INSIDE.items()}
        self.chart = _box(2 * SIDE, min_height="244px")  # the folds below stay where they are
        for lines in (self.chart, self.inside["tokens"], self.inside["diagram"]):
            lines.add_class("datekit-lines")
        self._drawn: dict[str, Frame] = {}  # the frames on screen
        self._charted: tuple = ()  # what the chart shows
        self._taken: tuple = ("", None)  # what was taken away, and the state that it shows
        self._inside_of: tuple | None = None  # the state that the inside of a step shows
        self._fold()
        wide = widgets.Layout(flex="1 1 0%", overflow="hidden", padding="0 8px 0 0")
        sliders = widgets.VBox([controls.rho, self.time], layout=wide)
        numbers = widgets.VBox([controls.fields["rho"], self.at])
        said = widgets.VBox(  # of one height, so that what is said moves nothing
            [self.status, self.error, self.hint, self.examples],
            layout=widgets.Layout(height="86px", overflow="auto"),
        )
        super().__init__(
            [
                *(widgets.HTML(STYLE), controls.fields["prompt"]),
                *(widgets.HBox([sliders, numbers]), said),
                widgets.HBox([*self.pictures.values()]),
                *(self.chart, self.folded, widgets.HTML(f"<small>{AGAIN}</small>"), self.traceback),
            ],
            layout=widgets.Layout(width="100%", max_width=f"{2 * SIDE + 20}px"),
        )
        self.worker = Worker(controller, self._show, self._tell)
        self._ready = True
        self._do(lambda: None)

    def wait(self, timeout: float | None = None) -> Explorer:
        """Return when all that is wanted is computed and on screen.

        Raises TimeoutError after `timeout` seconds.
        """
        if not self.worker.wait(timeout):
            raise TimeoutError(f"the explorer is still at work after {timeout} s")
        return self

    def set(self, **settings) -> Explorer:
        """Change settings by name; what does not fit is an error on screen."""
        self._do(lambda: self.controller.change(**settings))
        return self

    def close(self) -> None:
        """Take the widget and all that is in it off the screen and out of the kernel."""
        if self._ready:  # not where making it failed, nor a second time
            self._ready = False
            self.worker.do(None)
            for part in (*self.children, self.layout, self._link):
                _close(part)
        super().close()

    def _repr_mimebundle_(self, **kwargs) -> dict:
        """As a widget, and for pages that show none as its picture, once there is one."""
        bundle = super()._repr_mimebundle_(**kwargs)
        self.worker.wait(3)
        if pictures := [box.value for row, box in self.pictures.items() if row in self._drawn]:
            seen = "".join(f'<div style="display:inline-block">{each}</div>' for each in pictures)
            bundle["text/html"] = f"<p>The explorer as it stood. {AGAIN}</p>{seen}"
        return bundle

    def __repr__(self) -> str:
        settings = self.controller.settings
        return f"Explorer({settings.prompt!r}, seed {settings.seed}, {settings})"

    # what the user does

    def _do(self, change: Callable[[], None]) -> None:
        if self._ready and not self.worker.here:  # not what the worker itself has just set
            self.worker.do(change)

    def _make_buttons(self) -> None:
        controller = self.controller
        acts = {
            "fork here": ("keep this run; changes act from the step on screen", controller.fork),
            "join": ("forget the fork; changes act from the first step", controller.join),
        }
        self.buttons = {name: self._button(name, *act) for name, act in acts.items()}
        self.exports = {}
        for name, (kind, file, make) in EXPORTS.items():
            export = partial(self._export, kind, file, make)
            self.exports[name] = self._button(name, f"take what is on screen as {name}", export)
        self.time = widgets.IntSlider(**looks("step", "step on screen", "100%"), readout=False)
        self.at = widgets.IntText(**looks("step =", "step on screen", "200px"))
        for control in (self.time, self.at):
            control.observe(lambda new: self._do(lambda: controller.scrub(new["new"])), "value")
        self.play = widgets.Play(interval=300, tooltip="one step after the other")
        # a page that opens later gives the second the value of the first
        self._link = widgets.jslink((self.time, "value"), (self.play, "value"))
        presses = [button(each, "draw this", partial(self.set, prompt=each)) for each in EXAMPLES]
        self.examples = row([widgets.Label("for example"), *presses])

    def _button(self, name: str, tip: str, act: Callable[[], None]) -> widgets.Button:
        return button(name, tip, partial(self._do, act))

    def _export(self, kind: str, file: str, make: Callable) -> None:
        content = make(self.controller)
        lines = f"<pre>{html.escape(content)}</pre>" if isinstance(content, str) else ""
        link = _link(content.encode() if lines else content, kind)
        saved = f'<a download="{file}" href="{link}">save {file}</a>'
        about = html.escape(f"{self.controller.place}; {self.controller.story}")
        self._taken = f"{saved}, {about}{lines}", self.controller.screen

    def _fold(self) -> None:
        controls = self.controls
        others = [each for name, each in controls.fields.items() if name not in ("prompt", "rho")]
        others.sort(key=lambda control: control is not controls.fields["method"])
        parts = {
            "method and settings": (row(others),),
            "play, fork, choose steps": (
                row([self.play, *self.buttons.values()]),
                controls.strip,
                row([*controls.presets.values(), controls.k]),
            ),
            "inside this step": (row([*self.inside.values()]),),
            "take it away": (row([*self.exports.values()]), self.taken),
        }
        self.folds, boxes = {}, []
        for title, children in parts.items():
            boxes.append(box := widgets.VBox(children, layout=widgets.Layout(display="none")))
            self.folds[title] = fold = widgets.ToggleButton(**looks(title, "show or hide", "auto"))
            fold.observe(partial(self._unfold, box), "value")
        self.folded = widgets.VBox([row([*self.folds.values()]), *boxes])

    def _unfold(self, box: widgets.Box, change: dict) -> None:
        box.layout.display = None if change["new"] else "none"
        self._do(lambda: None)

    # what is shown

    def _show(self) -> None:
        """Bring everything in line with the controller; in the worker's thread.

        A picture stays, pale, until the one that is asked for, or a draft of it, is there.
        """
        if not self._ready:
            return
        controller = self.controller
        frames, complete = controller.pictures(), controller.head >= controller.at
        if frames:
            self._show_pictures(frames)
        if complete and controller.answered:
            self._show_chart()
        _pale(self.pictures.values(), not frames)
        _pale([self.chart], not complete)
        self.status.value = f'<span role="status">{html.escape(controller.status())}</span>'
        self.buttons["join"].disabled = "old" not in controller.timelines
        taken, of = self._taken
        stale = bool(taken) and of != controller.screen
        self.taken.value = STALE * stale + taken
        _pale([self.taken], stale)
        if self.worker.asked:  # the user may be dragging a control, and this comes again soon
            return
        self.hint.value = html.escape(controller.hint())
        self.examples.layout.display = None if self.hint.value else "none"
        self.time.max = self.play.max = controller.num_steps
        self.time.value = controller.at
        self.at.value = controller.at
        self.controls.show()
        inside = self.folds["inside this step"].value
        if inside and complete and self._inside_of != controller.screen:
            self._show_inside()

    def _show_pictures(self, frames: dict[str, Frame]) -> None:
        if frames == self._drawn:
            return
        self._drawn = frames
        self.pictures["old"].layout.display = None if "old" in frames else "none"
        for name, frame in frames.items():
            image = frame.picture.copy()
            image.thumbnail((2 * SIDE, 2 * SIDE))
            draft = frame.steps < self.controller.num_steps
            place = f"a draft in {frame.steps} steps" if draft else self.controller.place
            data, words = encode(image.save, "PNG"), f"{ROWS[name]}, {place}"
            self.pictures[name].value = _picture(
                data, words, _caption(name, frame, draft), image.width
            )

    def _show_chart(self) -> None:
        rows, reward = self.controller.curves(), self.controller.settings.reward
        if (rows, reward) == self._charted:
            return
        self._charted, lines, updated = (rows, reward), {}, {}
        for name, frames in rows.items():
            lines[ROWS[name]] = [f.i for f in frames], [f.values[reward] for f in frames]
            updated[ROWS[name]] = [f.i for f in frames if f.updated]
        ylabel = f"reward: {reward}"
        self.chart.value = _figure((8.4, 2.4), plot.curves, lines, updated=updated, ylabel=ylabel)

    def _show_inside(self) -> None:
        controller = self.controller
        run, n = controller.run(i=controller.last), controller.frame(i=controller.last).sample
        start = run.states[controller.last][n : n + 1]
        reward = controller.rewards[controller.settings.reward]
        for name, (measure, size) in INSIDE.items():
            result = measure(Run(run.sampler, start), reward=reward)
            self.inside[name].value = _figure(size, getattr(plot, name), result)
        self._inside_of = controller.screen

    def _tell(self, error: BaseException | None) -> None:
        """Show an error, or none; the whole traceback is one click away, below everything."""
        self.error.value = self.traceback.value = ""
        if error:
            lines = html.escape("".join(traceback.format_exception(error)))
            self.traceback.value = (
                f"<details><summary>traceback</summary><pre>{lines}</pre></details>"
            )
            self.error.value = (
                '<div role="alert" style="border-left:4px solid #D55E00;padding:0 8px;'
                f'line-height:1.3"><b>{type(error).__name__}</b>: {html.escape(str(error))}</div>'
            )


def _update(run: Run) -> StepInfo | None:
    """What the next step of a run does, if it moves the embedding."""
    info = run.step()
    return info if info.updated else None


def _pale(boxes: Iterable[widgets.DOMWidget], pale: bool) -> None:
    for box in boxes:
        (box.add_class if pale else box.remove_class)("datekit-pale")


def _caption(name: str, frame: Frame, draft: bool) -> str:
    about = f", a draft in {frame.steps} steps" if draft else ", updated here" * frame.updated
    numbers = [f"{html.escape(reward)} {value:.3f}" for reward, value in frame.values.items()]
    numbers.append(f"||c - c_org|| {frame.distance:.3g}")
    lines = [f"<b>{ROWS[name]}</b>{about}", *filter(None, [frame.told]), "; ".join(numbers)]
    if frame.verdict:
        said = [f"{text}: {'yes' if ok else 'no'}" for text, ok in frame.verdict.statements]
        lines.append(f"oracle: {html.escape('; '.join(said))}")
    return "<br>".join(lines)


def _figure(size: tuple[float, float], draw: Callable, *data, **options) -> str:
    """A figure of `dk.plot` as HTML; without pyplot, which is for the main thread."""
    ax = draw(*data, ax=Figure(figsize=size, layout="constrained").add_subplot(), **options)
    return _picture(encode(ax.figure.savefig, "png"), plot.alt_text(ax))


def _picture(png_bytes: bytes, words: str, caption: str = "", width: int = SIDE) -> str:
    """A picture as HTML with its text alternative, which `widgets.Image` has no place for."""
    drawn = "pixelated" if caption and width < SIDE else "auto"
    return (
        f'<figure style="margin:0"><img src="{_link(png_bytes, "image/png")}" '
        f'alt="{html.escape(words)}" style="display:block;width:100%;image-rendering:{drawn}">'
        f'<figcaption style="line-height:1.3">{caption}</figcaption></figure>'
    )


def _link(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _box(width: float, **layout: str) -> widgets.HTML:
    limits = {"min_width": "0", "max_width": "100%"}
    return widgets.HTML(layout=widgets.Layout(width=f"{width:g}px", **limits, **layout))


def _close(widget: widgets.Widget) -> None:
    """Close a widget with its children, its layout and its style."""
    own = [getattr(widget, name, None) for name in ("layout", "style")]
    for part in (*getattr(widget, "children", ()), *own):
        if isinstance(part, widgets.Widget):
            _close(part)
    widget.close()
