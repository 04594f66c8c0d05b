"""The explorer on screen: core ipywidgets that show a `Controller` and pass on the user's acts."""

from __future__ import annotations

import base64
import html
import traceback
from collections.abc import Callable

import ipywidgets as widgets

from ..errors import unknown
from ..types import to_pil
from .charts import NAMES, charts
from .controller import ROWS, Controller
from .controls import Controls, row
from .export import gif, place, png, python
from .library import Frame
from .pictures import PICTURES, screen_png
from .settings import option_names
from .worker import Worker

PACE = 0.15  # least seconds a step while playing
TILE, LEAST = 148, 88  # pixels of a picture where there is room, and where there is not
EXPORTS = {  # name: type, file, what makes it
    "PNG": ("image/png", "explorer.png", png),
    "GIF": ("image/gif", "explorer.gif", gif),
    "Python": ("text/x-python", "explorer.py", lambda controller: python(controller).encode()),
}


class Picture(widgets.HTML):
    """A picture with a caption, and the text alternative that `widgets.Image` has no place for."""

    def __init__(self, least: int = LEAST, most: int = TILE) -> None:
        super().__init__(layout=widgets.Layout(flex=f"1 1 {least}px", max_width=f"{most}px"))
        self.shown: tuple = (b"", "", "")

    def put(self, data: bytes, words: str, caption: str = "", kind: str = "png") -> None:
        """Show these bytes. words: what they show, for those who do not see it; caption: HTML."""
        if (data, words, caption) != self.shown:
            self.shown = (data, words, caption)
            source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
            self.value = (
                f'<figure style="margin:0"><img src="{source}" alt="{html.escape(words)}" '
                f'style="display:block;width:100%"><figcaption>{_small(caption)}</figcaption></figure>'
            )


class Explorer(widgets.VBox):
    """The rho and timestep widget; `dk.explore` makes it.

    controller: what it shows; controls: the widgets of the settings; buttons, time, sweeping,
    exports: what the user presses and drags; pictures: by (row, name) of `ROWS` and `PICTURES`;
    charts, sweep: further pictures; status, error, notes, taken: what is said. It computes in a
    thread of its own.
    """

    _ready = False

    def __init__(self, controller: Controller, *, start: bool = True) -> None:
        self.controller = controller
        self.worker = Worker(controller, self._show, self._tell)
        self._refused, self._misfit = {}, None
        self.controls = Controls(controller, self._changed, self._marked)
        self._transport()
        self.status, self.error, self.notes, self.taken = (widgets.HTML() for _ in range(4))
        self.pictures = {(name, what): Picture() for name in ROWS for what in PICTURES}
        self.captions = {name: widgets.HTML(layout=widgets.Layout(width="116px")) for name in ROWS}
        self.verdicts = {name: widgets.HTML() for name in ROWS}
        self.rows = {name: self._row(name) for name in ROWS}
        self.charts = {name: Picture(200, 400) for name in NAMES}
        self.sweep = [Picture() for _ in controller.rhos]
        self.sweep_row = row(self.sweep)
        pairs = [[self.charts[name] for name in names] for names in (NAMES[:2], NAMES[2:])]
        pair = widgets.Layout(flex="1 1 410px", max_width="100%")  # four in a row, or two by two
        super().__init__(
            [
                self.controls.box,
                row([*self.buttons.values(), self.sweeping]),
                row([self.time, self.progress]),
                *(self.status, self.error, self.notes, *self.rows.values(), self.sweep_row),
                row([widgets.HBox(two, layout=pair) for two in pairs]),
                row([*self.exports.values()]),
                self.taken,
            ],
            layout=widgets.Layout(max_width="1000px"),
        )
        self._ready = True
        self._do(self.controller.play if start else lambda: None)

    def wait(self, timeout: float | None = None) -> Explorer:
        """Return when all that is wanted is computed and on screen.

        Raises TimeoutError after `timeout` seconds.
        """
        if not self.worker.wait(timeout):
            where = self.controller.status()
            raise TimeoutError(f"the explorer is still at work after {timeout} s: {where}")
        return self

    def set(self, **values) -> Explorer:
        """Change settings by name, as a user would by moving controls; `weights` takes a dict.

        Raises ValueError for a name that is none; a value that does not fit is an error on screen.
        """
        for name in values:
            if name not in (known := {*self.controls.fields, *option_names(), "weights"}):
                raise unknown("control", name, known)
        for name in values.get("weights", {}):
            if name not in self.controls.weights:
                raise unknown("reward", name, self.controls.weights)
        for name, value in values.items():
            if name == "weights":
                for reward, weight in value.items():
                    self.controls.weights[reward].value = weight
            elif name in self.controls.fields:
                self.controls.move(name, value)
            else:
                self._changed(**{name: value})
        return self

    def close(self) -> None:
        """Pause, and take the widget and all that is in it off the screen and out of the kernel."""
        if self._ready:  # not where making it failed, nor a second time
            self.controller.eager = self.controller.sweeping = self._ready = False
            self.worker.do(self.controller.pause)
        waiting = [*self.children, *self.controls.cells, self.layout] if self.children else []
        while waiting:
            widget = waiting.pop()
            waiting += getattr(widget, "children", ())
            for part in (getattr(widget, "layout", None), getattr(widget, "style", None)):
                waiting += [part] if isinstance(part, widgets.Widget) else []
            widget.close()
        super().close()

    def __repr__(self) -> str:
        settings = self.controller.settings
        return f"Explorer({settings.prompt!r}, seed {settings.seed}, {settings})"

    # what the user does

    def _do(self, change: Callable[[], None]) -> None:
        if self._ready and not self.worker.here:  # not what the worker itself has just set
            self.worker.do(change)

    def _changed(self, **values) -> None:
        """What is refused is tried again with each further change, and an error until it fits."""

        def change() -> None:
            if self.controller.done:
                self.worker.pace = 0.0
            self._refused |= values
            try:
                self.controller.change(**self._refused)
            except Exception as error:
                self._misfit = error
                raise
            self._refused, self._misfit = {}, None
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
        controller, last = self.controller, self.controller.num_steps
        acts = {
            "restart": ("back to the first step, or to the fork", controller.restart),
            "back": ("undo the last step", controller.back),
            "play": ("take all steps that are left, one by one", lambda: self._play(PACE)),
            "pause": ("stay where the run has come to", controller.pause),
            "step": ("take one step", controller.step),
            "end": ("all steps, as fast as they go", lambda: self._play(0.0)),
            "fork here": ("keep this run and go on from the step on screen", controller.fork),
            "join": ("forget the run from before the fork", controller.join),
        }
        self.buttons = {name: self._button(name, *act) for name, act in acts.items()}
        self.exports = {
            name: self._button(name, f"take what is on screen as {name}", self._exporter(name))
            for name in EXPORTS
        }
        self.sweeping = widgets.ToggleButton(
            description="rho sweep", tooltip="the step on screen at seven radii"
        )
        self.sweeping.observe(lambda c: self._do(lambda: controller.sweep(c["new"])), "value")
        self.time = widgets.IntSlider(
            value=0,
            max=last,
            description="step",
            tooltip="step on screen",
            layout=widgets.Layout(width="430px"),
        )
        self.time.observe(lambda c: self._do(lambda: controller.scrub(c["new"])), "value")
        self.progress = widgets.IntProgress(
            value=0, max=last, tooltip="steps taken", layout=widgets.Layout(width="120px")
        )

    def _button(self, name: str, tip: str, act: Callable[[], None]) -> widgets.Button:
        button = widgets.Button(description=name, tooltip=tip, layout=widgets.Layout(width="auto"))
        button.on_click(lambda _: self._do(act))
        return button

    def _exporter(self, name: str) -> Callable[[], None]:
        kind, file, make = EXPORTS[name]

        def export() -> None:
            content = make(self.controller)
            link = f"data:{kind};base64,{base64.b64encode(content).decode()}"
            lines = f"<pre>{html.escape(content.decode())}</pre>" if name == "Python" else ""
            self.taken.value = (
                f'<a download="{file}" href="{link}">save {file}</a> '
                f"({len(content) / 1024:.0f} kB), {place(self.controller)}{lines}"
            )

        return export

    # what is shown

    def _row(self, name: str) -> widgets.VBox:
        pictures = [self.pictures[name, what] for what in PICTURES]
        return widgets.VBox([row([self.captions[name], *pictures]), self.verdicts[name]])

    def _show(self) -> None:
        """Bring everything in line with the controller; in the worker's thread."""
        controller = self.controller
        if controller.head < controller.goal:
            self._show_status()  # first: a new picture never stands beside an old "finished"
        frames = {name: controller.frame(name) for name in controller.timelines}
        for name in ROWS:
            self.rows[name].layout.display = None if name in frames else "none"
            if name in frames:
                self._show_row(name, frames[name])
        for name, (data, words) in charts(controller).items():
            self.charts[name].put(data, words, kind="svg+xml")
        self._show_sweep()
        self.time.max = self.progress.max = controller.num_steps
        self.progress.value = controller.head
        if not self.worker.asked:  # else the user may be dragging it, and this comes again soon
            self.time.value = controller.shown
        self._show_status()
        self.buttons["pause"].disabled = controller.head == controller.goal
        self.buttons["join"].disabled = controller.old is None
        self.buttons["back"].disabled = controller.head == 0
        notes = [f"<div>note: {html.escape(text)}</div>" for text in controller.notes()]
        self.notes.value = "".join(notes)
        if (
            not self.worker.asked
        ):  # last, so that whoever sees a control changed sees the status too
            self.controls.refresh(controller)

    def _show_row(self, name: str, frame: Frame) -> None:
        expected = frame.i < self.controller.num_steps
        numbers = {
            "xt": f"noisy, t = {frame.t:.4g}",
            "x0bar": "expected",
            "grad": f"what h wants, up to {frame.scales['grad']:.2g}",
            "guidance": f"what the method did, up to {frame.scales['guidance']:.2g}",
            "decoded": "expected picture" if expected else "final picture",
        }
        for what, words in PICTURES.items():
            self.pictures[name, what].put(
                screen_png(frame.pictures[what], TILE),
                f"{ROWS[name]}, step {frame.i}: {words}; {numbers[what]}",
                f"<b>{what}</b><br>{numbers[what]}",
            )
        lines = [f"<b>{ROWS[name]}</b>", f"h {frame.h:.3f}"]
        if len(frame.values) > 1:
            lines += [f"{html.escape(part)} {value:.3f}" for part, value in frame.values.items()]
        lines += [f"||c - c_org|| {frame.distance:.3g}", f"||grad_c h|| {frame.grad_norm:.2g}"]
        lines += ["updated here"] if frame.updated else []
        self.captions[name].value = _small("<br>".join(lines))
        said = [
            f"{html.escape(text)}: <b>{'yes' if ok else 'no'}</b>" for text, ok in frame.statements
        ]
        seen = f" (it sees {html.escape(frame.things)})"
        self.verdicts[name].value = _small(f"oracle: {'; '.join(said)}{seen}") if said else ""

    def _show_sweep(self) -> None:
        swept = self.controller.swept()
        self.sweep_row.layout.display = None if swept else "none"
        if swept:
            for n, picture in enumerate(self.sweep):
                rho, h, first = swept.rhos[n], swept.h[n, 0], swept.predicted[n, 0]
                numbers = [f"rho {rho:.3g}", f"h {h:.3f}", f"first order {first:.3f}"]
                data = screen_png(to_pil(swept.images[n])[0], TILE)
                words = f"x0bar at step {swept.i}, {', '.join(numbers)}"
                picture.put(data, words, "<br>".join(numbers))

    def _show_status(self) -> None:
        where = f"step {self.controller.shown} on screen; {self.controller.status()}"
        self.status.value = f'<span role="status">{html.escape(where)}</span>'

    def _tell(self, error: Exception | None) -> None:
        """Show an error, or none but that of a control; the whole traceback is one click away."""
        if not (error := error or self._misfit):
            self.error.value = ""
            return
        lines = "".join(traceback.format_exception(error))
        self.error.value = (
            '<div role="alert" style="border-left:4px solid #D55E00;padding:4px 8px">'
            f"<b>{type(error).__name__}</b>: {html.escape(str(error))}<details>"
            f"<summary>traceback</summary><pre>{html.escape(lines)}</pre></details></div>"
        )


def _small(text: str) -> str:
    return f'<div style="font-size:11px;line-height:1.25">{text}</div>'
