"""The explorer on screen: core ipywidgets that show a `Controller` and pass on the user's acts."""

from __future__ import annotations

import base64
import html
import traceback
from collections.abc import Callable
from functools import partial

import ipywidgets as widgets
from matplotlib.figure import Figure

from .. import analysis, plot
from .controller import ROWS, Controller, Frame
from .controls import Controls, button, looks, row
from .export import encode, enlarge, gif, png, python
from .worker import Worker

SIDE = 288  # pixels of a picture on screen
EXPORTS = {  # name: type, file, what makes it
    "PNG": ("image/png", "explorer.png", png),
    "GIF": ("image/gif", "explorer.gif", gif),
    "Python": ("text/x-python", "explorer.py", python),
}
INSIDE = {  # figure: its instrument, its size in inches
    "chain": (analysis.chain_rule, (2.6, 4.4)),
    "tokens": (analysis.token_shares, (6, 3)),
}
SEEN = (("prompt", "rho"), ("method", "seed"))  # at once, in two rows; other settings fold away
STYLE = "<style>.datekit-pale {opacity: 0.4}</style>"


class Explorer(widgets.VBox):
    """The explorer; `dk.explore` makes it.

    controller: what it shows; controls: the widgets of the settings; time, buttons, exports: what
    the user drags and presses; pictures: by the names of `ROWS`; chart: the reward by step; inside:
    figures by the names of `INSIDE`; folds: what is seen when asked for; status, error, taken: what
    is said. It computes in a thread of its own.
    """

    _ready = False

    def __init__(self, controller: Controller) -> None:
        self.controller = controller
        self.controls = Controls(controller, self.set)
        self._make_buttons()
        self.status, self.error, self.taken = (widgets.HTML() for _ in range(3))
        self.pictures = {name: _box(SIDE) for name in ROWS}
        self.inside = {name: _box(100 * size[0]) for name, (_, size) in INSIDE.items()}
        self.chart = _box(600)
        self._fold()
        first, second = ([self.controls.fields[name] for name in names] for names in SEEN)
        super().__init__(
            [
                row(first),
                self.time,
                row([*second, *self.buttons.values()]),
                *(widgets.HTML(STYLE), self.status, self.error),
                row([*self.pictures.values()]),
                *(self.controls.strip, self.chart, self.folds),
            ],
            layout=widgets.Layout(max_width="1000px"),
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
        """Pause, and take the widget and all that is in it off the screen and out of the kernel."""
        if self._ready:  # not where making it failed, nor a second time
            self._ready = False
            self.worker.do(self.controller.pause)
            self.worker.do(None)
            for part in (*self.children, self.layout):
                _close(part)
        super().close()

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
            "back": ("the step before", lambda: controller.step(-1)),
            "step": ("the next step", controller.step),
            "play": ("all steps that are left, one by one", controller.play),
            "pause": ("stay where the run has come to", controller.pause),
            "end": ("the final picture", lambda: controller.scrub(controller.num_steps)),
            "fork here": ("keep this run; changes act from the step on screen", controller.fork),
            "join": ("forget the fork; changes act from the first step", controller.join),
        }
        self.buttons = {name: self._button(name, *act) for name, act in acts.items()}
        self.exports = {}
        for name, (kind, file, make) in EXPORTS.items():
            export = partial(self._export, kind, file, make)
            self.exports[name] = self._button(name, f"take what is on screen as {name}", export)
        self.time = widgets.IntSlider(**looks("step", "step on screen", "430px"))
        self.time.observe(lambda change: self._do(lambda: controller.scrub(change["new"])), "value")

    def _button(self, name: str, tip: str, act: Callable[[], None]) -> widgets.Button:
        return button(name, tip, partial(self._do, act))

    def _export(self, kind: str, file: str, make: Callable) -> None:
        content = make(self.controller)
        lines = f"<pre>{html.escape(content)}</pre>" if isinstance(content, str) else ""
        link = _link(content.encode() if lines else content, kind)
        saved = f'<a download="{file}" href="{link}">save {file}</a>'
        self.taken.value = f"{saved}, {self.controller.place}{lines}"

    def _fold(self) -> None:
        seen, controls = {*SEEN[0], *SEEN[1]}, self.controls
        others = [control for name, control in controls.fields.items() if name not in seen]
        folds = {
            "more settings": (row(others), row([*controls.presets.values(), controls.k])),
            "inside this step": (row([*self.inside.values()]),),
            "take it away": (row([*self.exports.values()]), self.taken),
        }
        boxes = [widgets.VBox(parts) for parts in folds.values()]
        self.folds = widgets.Accordion(boxes, selected_index=None)
        for n, title in enumerate(folds):
            self.folds.set_title(n, title)  # as Colab's ipywidgets 7 has it too
        self.folds.observe(lambda _: self._do(lambda: None), "selected_index")

    # what is shown

    def _show(self) -> None:
        """Bring everything in line with the controller; in the worker's thread.

        A picture stays, pale, until the one that is asked for is there.
        """
        if not self._ready:
            return
        controller = self.controller
        waiting = controller.head < controller.at
        for picture in (*self.pictures.values(), self.chart):
            if waiting:
                picture.add_class("datekit-pale")
            else:
                picture.remove_class("datekit-pale")
        if not waiting:
            self._show_pictures()
        self.status.value = f'<span role="status">{html.escape(controller.status())}</span>'
        self.buttons["pause"].disabled = not (waiting or controller.playing)
        self.buttons["join"].disabled = "old" not in controller.timelines
        if self.worker.asked:  # the user may be dragging a control, and this comes again soon
            return
        self.time.max, self.time.value = controller.num_steps, controller.at
        self.controls.show()
        if self.folds.selected_index == 1 and not waiting:
            self._show_inside()

    def _show_pictures(self) -> None:
        controller = self.controller
        reward, lines, updated = controller.settings.reward, {}, {}
        for name, frames in controller.curves().items():
            lines[ROWS[name]] = [f.i for f in frames], [f.values[reward] for f in frames]
            updated[ROWS[name]] = [f.i for f in frames if f.updated]
        self.chart.value = _figure((6, 2.4), plot.curves, lines, updated=updated, ylabel="h")
        self.pictures["old"].layout.display = None if "old" in controller.timelines else "none"
        for name in controller.timelines:
            frame = controller.frame(name)
            image = enlarge(frame.picture, SIDE)
            image.thumbnail((2 * SIDE, 2 * SIDE))
            data, words = encode(image.save, "PNG"), f"{ROWS[name]}, {controller.place}"
            self.pictures[name].value = _picture(data, words, _caption(name, frame))

    def _show_inside(self) -> None:
        controller = self.controller
        run = controller.run(i=controller.last).fork(at=controller.last)
        for name, (measure, size) in INSIDE.items():
            result = measure(run, reward=controller.rewards[controller.settings.reward])
            self.inside[name].value = _figure(size, getattr(plot, name), result)

    def _tell(self, error: BaseException | None) -> None:
        """Show an error, or none; the whole traceback is one click away."""
        self.error.value = ""
        if error:
            lines = "".join(traceback.format_exception(error))
            self.error.value = (
                '<div role="alert" style="border-left:4px solid #D55E00;padding:4px 8px">'
                f"<b>{type(error).__name__}</b>: {html.escape(str(error))}<details>"
                f"<summary>traceback</summary><pre>{html.escape(lines)}</pre></details></div>"
            )


def _caption(name: str, frame: Frame) -> str:
    lines = [f"<b>{ROWS[name]}</b>" + (", updated here" if frame.updated else "")]
    lines += [f"{html.escape(reward)} {value:.3f}" for reward, value in frame.values.items()]
    lines.append(f"||c - c_org|| {frame.distance:.3g}")
    if frame.verdict:
        said = [f"{text}: {'yes' if ok else 'no'}" for text, ok in frame.verdict.statements]
        lines.append(f"oracle: {html.escape('; '.join(said))}")
    return "<br>".join(lines)


def _figure(size: tuple[float, float], draw: Callable, *data, **options) -> str:
    """A figure of `dk.plot` as HTML; without pyplot, which is for the main thread."""
    ax = draw(*data, ax=Figure(figsize=size, layout="constrained").add_subplot(), **options)
    return _picture(encode(ax.figure.savefig, "png"), plot.alt_text(ax))


def _picture(png_bytes: bytes, words: str, caption: str = "") -> str:
    """A picture as HTML with its text alternative, which `widgets.Image` has no place for."""
    return (
        f'<figure style="margin:0"><img src="{_link(png_bytes, "image/png")}" '
        f'alt="{html.escape(words)}" style="display:block;width:100%">'
        f'<figcaption style="line-height:1.3">{caption}</figcaption></figure>'
    )


def _link(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _box(width: float) -> widgets.HTML:
    return widgets.HTML(layout=widgets.Layout(width=f"{width:g}px", max_width="100%"))


def _close(widget: widgets.Widget) -> None:
    """Close a widget with its children, its layout and its style."""
    own = [getattr(widget, name, None) for name in ("layout", "style")]
    for part in (*getattr(widget, "children", ()), *own):
        if isinstance(part, widgets.Widget):
            _close(part)
    widget.close()
