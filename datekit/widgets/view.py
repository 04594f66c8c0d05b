"""The explorer on screen: core ipywidgets that show a `Controller` and pass on what the user does."""

from __future__ import annotations

import base64
import html
import traceback
from collections.abc import Callable

import ipywidgets as widgets

from ..errors import unknown
from .branch import PICTURES, Frame
from .charts import Charts, sweep_words
from .controller import ROWS, Controller
from .controls import Controls, row
from .export import gif, picture_png, place, png, python
from .sweep import OCTAVES
from .worker import Worker

PACE = 0.15  # least seconds a step while playing
TILE, LEAST = 148, 88  # pixels of a picture on screen where there is room, and where there is not
CHART = 200, 400  # the same of a chart: four in a row, or two by two
BUTTONS = {
    "restart": "back to the first step, or to the fork", "back": "undo the last step", "play": "take all steps that are left, one by one",
    "pause": "stay where the run has come to", "step": "take one step", "end": "all steps, as fast as they go",
    "fork here": "keep this run for comparison and go on from the step on screen", "join": "forget the run from before the fork",
}  # fmt: skip


class Picture(widgets.HTML):
    """A PNG with a caption and the text alternative that `widgets.Image` has no place for."""

    def __init__(self, least: int, most: int) -> None:
        super().__init__(layout=widgets.Layout(flex=f"1 1 {least}px", max_width=f"{most}px"))
        self.png, self.words, self.caption = b"", "", ""

    def put(self, png: bytes, words: str, caption: str = "") -> None:
        """Show these bytes; words: what they show, for those who do not see it; caption: HTML."""
        if (png, words, caption) != (self.png, self.words, self.caption):
            self.png, self.words, self.caption = png, words, caption
            data = base64.b64encode(png).decode()
            picture = f'<img src="data:image/png;base64,{data}" alt="{html.escape(words)}" style="display:block;width:100%">'
            self.value = f'<figure style="margin:0">{picture}<figcaption>{_small(caption)}</figcaption></figure>'


class Explorer(widgets.VBox):
    """The rho and timestep widget; made by `dk.explore`.

    controller: what it shows; controls: the widgets of the settings; buttons, time: transport; pictures: by (row, name) of `ROWS` and
    `PICTURES`; charts, sweep: further pictures; error, notes, status, progress: what is to be said. `wait()` returns when
    all is computed, `set(rho=2.0)` moves controls as a user would. It computes in a thread of its own: let it finish before the same
    backbone samples elsewhere.
    """

    def __init__(self, controller: Controller, *, start: bool = True) -> None:
        self.controller = controller
        self.worker = Worker(controller, self._show, self._tell)
        self._charts = Charts()
        self._ready, self._misfit = False, None
        self.controls = Controls(controller, self._changed, self._marked)
        self._transport()
        self._screen()
        super().__init__(
            [
                self.controls.box,
                row([*self.buttons.values(), self.sweeping]),
                row([self.time, self.progress]),
                self.status,
                self.error,
                self.notes,
                self.grid,
                self.sweep_row,
                self.chart_row,
                row([*self.exports.values()]),
                self.taken,
            ],
            layout=widgets.Layout(max_width="1000px"),
        )
        self._ready = True
        self._do(self.controller.play if start else lambda: None)

    def wait(self, timeout: float | None = None) -> Explorer:
        """Return when all that is wanted is computed and on screen. Raises TimeoutError after `timeout` seconds."""
        if not self.worker.wait(timeout):
            raise TimeoutError(
                f"the explorer is still at work after {timeout} s: {self.controller.status()}"
            )
        return self

    def set(self, **values) -> Explorer:
        """Move controls by the names of `Settings`' fields, as a user would; `when` takes a schedule, `weights` a dict.

        Raises ValueError for a name that is no control's; what a control does not take is an error on screen.
        """
        rewards = values.get("weights", {})
        for kind, names, known in (
            ("control", values, (*self.controls.fields, "when", "weights")),
            ("reward", rewards, self.controls.weights),
        ):
            for name in names:
                if name not in known:
                    raise unknown(kind, name, known)
        for name, value in values.items():
            if name == "when":
                self._changed(**self.controls.values(), when=value)
            elif name == "weights":
                for reward, weight in dict(value).items():
                    self.controls.weights[reward].value = weight
            else:
                self.controls.fields[name].value = value
        return self

    def __repr__(self) -> str:
        return f"Explorer({self.controller.settings.prompt!r}, seed {self.controller.settings.seed}, {self.controller.settings})"

    # what the user does

    def _do(self, change: Callable[[], None]) -> None:
        if self._ready and not self.worker.here:  # not what the worker itself has just set
            self.worker.do(change)

    def _changed(self, **values) -> None:
        def change() -> None:
            if self.controller.done:
                self.worker.pace = 0.0
            try:
                self.controller.change(**values)
            except Exception as error:
                self._misfit = error  # on screen until the controls say what they do
                raise
            if self._misfit:
                self._misfit = None
                self._tell(None)

        self._do(change)

    def _marked(self, i: int, on: bool) -> None:
        def change() -> None:
            if (i in self.controller.settings.updates) != on:
                self.controller.toggle(i)

        self._do(change)

    def _play(self, pace: float) -> None:
        self.worker.pace = pace
        self.controller.play()

    def _transport(self) -> None:
        controller = self.controller
        acts = {
            "restart": controller.restart,
            "back": controller.back,
            "play": lambda: self._play(PACE),
            "pause": controller.pause,
            "step": controller.step,
            "end": lambda: self._play(0.0),
            "fork here": controller.fork,
            "join": controller.join,
        }
        self.buttons = {
            name: widgets.Button(description=name, tooltip=tip, layout=_width("auto"))
            for name, tip in BUTTONS.items()
        }
        for name, button in self.buttons.items():
            button.on_click(lambda _, act=acts[name]: self._do(act))
        self.sweeping = widgets.ToggleButton(
            value=False,
            description="rho sweep",
            tooltip="the step on screen at seven rho_rules",
            layout=_width("auto"),
        )
        self.sweeping.observe(
            lambda change: self._do(lambda: controller.sweep(change["new"])), names="value"
        )
        self.time = widgets.IntSlider(
            value=0,
            min=0,
            max=controller.num_steps,
            description="step",
            tooltip="step on screen",
            layout=_width("430px"),
        )
        self.time.observe(
            lambda change: self._do(lambda: controller.scrub(change["new"])), names="value"
        )
        self.progress = widgets.IntProgress(
            value=0, min=0, max=controller.num_steps, tooltip="steps taken", layout=_width("120px")
        )
        makers = {
            "PNG": lambda: self._offer("png", png(controller)),
            "GIF": lambda: self._offer("gif", gif(controller)),
            "Python": lambda: self._offer("py", python(controller).encode()),
        }
        self.exports = {
            name: widgets.Button(description=name, tooltip=f"export what is on screen as {name}")
            for name in makers
        }
        for name, button in self.exports.items():
            button.on_click(lambda _, make=makers[name]: self._do(make))

    # what is shown

    def _screen(self) -> None:
        self.status, self.error, self.notes, self.taken = (widgets.HTML() for _ in range(4))
        self.pictures = {(name, what): Picture(LEAST, TILE) for name in ROWS for what in PICTURES}
        self.captions = {name: widgets.HTML(layout=_width("116px")) for name in ROWS}
        self.verdicts = {name: widgets.HTML() for name in ROWS}
        strips = {
            name: row([self.captions[name], *(self.pictures[name, what] for what in PICTURES)])
            for name in ROWS
        }
        self.rows = {
            name: widgets.VBox([strip, self.verdicts[name]]) for name, strip in strips.items()
        }
        self.grid = widgets.VBox(list(self.rows.values()))
        self.charts = {name: Picture(*CHART) for name in Charts.NAMES}
        first, second, *others = self.charts.values()
        pair = widgets.Layout(flex=f"1 1 {2 * CHART[0] + 10}px", max_width="100%")
        self.chart_row = row([widgets.HBox(two, layout=pair) for two in ([first, second], others)])
        self.sweep = [Picture(LEAST, TILE) for _ in OCTAVES]
        self.sweep_row = row(self.sweep)

    def _show(self) -> None:
        """Bring everything in line with the controller; in the worker's thread."""
        controller = self.controller
        if controller.head < controller.goal:
            self._show_status()  # before any picture of a run under way: a new one never stands beside "finished"
        frames = {name: controller.frame(name) for name in controller.timelines}
        charts = self._charts.render(controller)
        for name in ROWS:
            self.rows[name].layout.display = None if name in frames else "none"
            if name in frames:
                self._show_row(name, frames[name])
        for name, (data, words) in charts.items():
            self.charts[name].put(data, words)
        self._show_sweep()
        self._show_transport()

    def _show_row(self, name: str, frame: Frame) -> None:
        for what, words in PICTURES.items():
            numbers = _numbers(frame, what)
            self.pictures[name, what].put(
                picture_png(frame.pictures[what], TILE),
                f"{ROWS[name]}, step {frame.i}: {words}; {numbers}",
                f"<b>{what}</b><br>{numbers}",
            )
        values = (
            [f"{html.escape(part)} {value:.3f}" for part, value in frame.values.items()]
            if len(frame.values) > 1
            else []
        )
        lengths = [f"||c - c_org|| {frame.distance:.3g}", f"||grad_c h|| {frame.grad_norm:.2g}"]
        lines = [
            f"<b>{ROWS[name]}</b>",
            f"h {frame.h:.3f}",
            *values,
            *lengths,
            *(["updated here"] if frame.updated else []),
        ]
        self.captions[name].value = _small("<br>".join(lines))
        said = "; ".join(
            f"{html.escape(text)}: <b>{'yes' if truth else 'no'}</b>"
            for text, truth in frame.statements or ()
        )
        self.verdicts[name].value = (
            _small(f"oracle: {said} (it sees {html.escape(frame.seen)})") if said else ""
        )

    def _show_sweep(self) -> None:
        found = self.controller.swept()
        self.sweep_row.layout.display = None if found else "none"
        if found:
            from ..types import to_pil

            for picture, pixels, words in zip(
                self.sweep, found.images, sweep_words(found), strict=True
            ):
                caption = words.replace(", ", "<br>").replace(": ", "<br>")
                picture.put(
                    picture_png(to_pil(pixels)[0], TILE),
                    f"x0bar at step {found.i}, {words}",
                    caption,
                )

    def _show_transport(self) -> None:
        controller = self.controller
        self.time.max = self.progress.max = controller.num_steps
        self.progress.value = controller.head
        if (
            not self.worker.asked
        ):  # else the user may be dragging it, and all is shown again in a moment
            self.time.value = controller.shown
        self._show_status()
        self.buttons["pause"].disabled = controller.head == controller.goal
        self.buttons["join"].disabled = controller.old is None
        self.buttons["back"].disabled = controller.head == 0
        self.notes.value = "".join(
            f"<div>note: {html.escape(text)}</div>" for text in controller.notes()
        )
        if not self.worker.asked:
            self.controls.refresh(
                controller
            )  # last: who sees a control changed by the controller sees a status that knows of it

    def _show_status(self) -> None:
        where = f"step {self.controller.shown} on screen; {self.controller.status()}"
        self.status.value = f'<span role="status">{html.escape(where)}</span>'

    def _tell(self, error: Exception | None) -> None:
        """Show an error, or none but that of a control that stands where it cannot; the whole traceback is one click away."""
        error = error or self._misfit
        if error is None:
            self.error.value = ""
            return
        lines = html.escape("".join(traceback.format_exception(error)))
        self.error.value = (
            f'<div role="alert" style="border-left:4px solid #D55E00;padding:4px 8px"><b>{type(error).__name__}</b>: '
            f"{html.escape(str(error))}<details><summary>traceback</summary><pre>{lines}</pre></details></div>"
        )

    def _offer(self, kind: str, content: bytes) -> None:
        """A link that saves what was made, and the lines themselves."""
        types = {"png": "image/png", "gif": "image/gif", "py": "text/x-python"}
        link = (
            f'<a download="explorer.{kind}" href="data:{types[kind]};base64,{base64.b64encode(content).decode()}">'
            f"save explorer.{kind}</a> ({len(content) / 1024:.0f} kB), {place(self.controller)}"
        )
        lines = f"<pre>{html.escape(content.decode())}</pre>" if kind == "py" else ""
        self.taken.value = link + lines


def _numbers(frame: Frame, what: str) -> str:
    return {
        "xt": f"noisy, t = {frame.t:.4g}",
        "x0bar": "expected",
        "grad": f"what h wants, up to {frame.scales['grad']:.2g}",
        "guidance": f"what the method did, up to {frame.scales['guidance']:.2g}",
        "decoded": "final picture" if frame.done else "expected picture",
    }[what]


def _width(width: str) -> widgets.Layout:
    return widgets.Layout(width=width, max_width="100%")


def _small(text: str) -> str:
    return f'<div style="font-size:11px;line-height:1.25">{text}</div>'
