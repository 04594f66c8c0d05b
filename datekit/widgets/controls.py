"""The explorer's controls: core widgets, each for one field of `Settings`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ipywidgets as widgets

from .. import schedules
from ..methods.date import ANCHORS
from .controller import Controller
from .settings import METHODS, RULES, Settings, solvers_of

CELLS = 100  # of the strip of steps; a run of more has the presets only
FIELDS = (
    "prompt",
    "seed",
    "method",
    "anchor",
    "rule",
    "rho",
    "scale",
    "guidance_scale",
    "num_steps",
    "solver",
)
PRESETS = {
    "every k": lambda k: schedules.every(k), "early": lambda k: schedules.early(), "middle": lambda k: schedules.middle(),
    "late": lambda k: schedules.late(), "none": lambda k: None,
}  # fmt: skip


class Controls:
    """Widgets by the names of `Settings`' fields, a strip of steps with presets, and a weight for each reward.

    changed: called with the settings to be, `values()` and a schedule if that is new; marked: with the number of a step and whether
    it shall update.
    """

    def __init__(
        self,
        controller: Controller,
        changed: Callable[..., None],
        marked: Callable[[int, bool], None],
    ) -> None:
        self.changed, self.marked = changed, marked
        settings = controller.settings
        if not settings.rho > 0:
            raise ValueError(
                f"the slider of rho is logarithmic and cannot stand at {settings.rho!r}; for no update take method='fixed'"
            )
        self.fields = _fields(
            settings, list(dict.fromkeys([*solvers_of(controller.backbone), settings.solver]))
        )
        self.weights = {
            name: widgets.FloatText(
                value=weight,
                step=0.1,
                description=name,
                tooltip=f"weight of the reward {name}",
                style=_WIDE,
                layout=_size("250px"),
            )
            for name, weight in settings.weights
        }
        self.k = widgets.BoundedIntText(
            value=5, min=1, max=1000, layout=_size("58px"), tooltip="k of the preset every k"
        )
        self.presets = {
            name: widgets.Button(
                description=name, tooltip=f"update in these steps: {name}", layout=_size("auto")
            )
            for name in PRESETS
        }
        self.strip = widgets.HBox(layout=widgets.Layout(flex_flow="row wrap", max_width="100%"))
        self.cells: list[widgets.ToggleButton] = []
        self._listen()
        self.refresh(controller)

    def __getattr__(self, name: str):
        if name in FIELDS:
            return self.fields[name]
        raise AttributeError(name)

    @property
    def box(self) -> widgets.Widget:
        """All of them, laid out in rows that wrap."""
        rows = [
            ("prompt", "seed"),
            ("method", "anchor", "rule", "rho", "scale"),
            ("guidance_scale", "num_steps", "solver"),
        ]
        every, *others = self.presets.values()
        return widgets.VBox(
            [
                *(row([self.fields[name] for name in names]) for names in rows),
                row(list(self.weights.values())),
                row([widgets.Label("updates in", layout=_size("70px")), every, self.k, *others]),
                self.strip,
            ]
        )

    def values(self) -> dict[str, Any]:
        """The settings as the fields stand, whether or not they fit."""
        weights = tuple((name, float(field.value)) for name, field in self.weights.items())
        return {name: field.value for name, field in self.fields.items()} | {"weights": weights}

    def refresh(self, controller: Controller) -> None:
        """Bring enabled and disabled, and the strip, in line with the controller."""
        settings = controller.settings
        for name in ("anchor", "rule", "rho", "scale"):
            self.fields[name].disabled = name not in settings.uses
        self.fields["scale"].layout.display = None if "scale" in settings.uses else "none"
        self._strip(settings, controller.head if controller.paused else 0)

    def _listen(self) -> None:
        for field in (*self.fields.values(), *self.weights.values()):
            field.observe(lambda _: self.changed(**self.values()), names="value")
        for name, button in self.presets.items():
            button.on_click(
                lambda _, name=name: self.changed(**self.values(), when=PRESETS[name](self.k.value))
            )

    def _strip(self, settings: Settings, past: int) -> None:
        """One cell a step; those of the past, which nothing changes any more, are off limits."""
        count = settings.num_steps if settings.num_steps <= CELLS else 0
        while len(self.cells) < count:
            i = len(self.cells)
            cell = widgets.ToggleButton(
                description=str(i),
                style={"font_size": "10px"},
                layout=widgets.Layout(width="28px", height="24px", padding="0", margin="1px"),
            )
            cell.observe(lambda change, i=i: self.marked(i, change["new"]), names="value")
            self.cells.append(cell)
        if len(self.strip.children) != count:
            self.strip.children = self.cells[:count]
        updates, reads = set(settings.updates), "when" in settings.uses
        for i, cell in enumerate(self.cells[:count]):
            on = i in updates and reads
            state = {
                "value": on,
                "disabled": not reads or i < past,
                "button_style": "primary" if on else "",
                "tooltip": f"step {i} {'updates' if on else 'does not update'}",
            }
            for name, value in state.items():
                if getattr(cell, name) != value:
                    setattr(cell, name, value)


def _fields(settings: Settings, solvers: list[str]) -> dict[str, Any]:
    octave = round(math.log2(settings.rho))
    menu = [
        name
        for name, parts in METHODS.items()
        if settings.tokens or not any("tokens" in uses for _, uses in parts)
    ]
    return {
        "prompt": widgets.Text(
            value=settings.prompt,
            description="prompt",
            continuous_update=False,
            layout=_size("400px"),
            tooltip="prompt",
        ),
        "seed": widgets.IntText(
            value=settings.seed,
            description="seed",
            layout=_size("170px"),
            tooltip="seed of the noise",
        ),
        "method": widgets.Dropdown(
            options=menu,
            value=settings.method,
            description="method",
            layout=_size("250px"),
            tooltip="method",
        ),
        "anchor": widgets.Dropdown(
            options=ANCHORS,
            value=settings.anchor,
            description="anchor",
            layout=_size("190px"),
            tooltip="where the gradient is taken and what is moved",
        ),
        "rule": widgets.Dropdown(
            options=list(RULES),
            value=settings.rule,
            description="rule",
            layout=_size("220px"),
            tooltip="what chooses the radius at each update, rho at most",
        ),
        "rho": widgets.FloatLogSlider(
            value=settings.rho,
            base=2,
            min=min(-6, octave - 1),
            max=max(6, octave + 1),
            step=0.25,
            description="rho",
            readout_format=".3g",
            layout=_size("300px"),
            tooltip="rho, the radius of the update",
        ),
        "scale": widgets.FloatText(
            value=settings.scale,
            description="scale",
            layout=_size("170px"),
            tooltip="scale of the guidance",
        ),
        "guidance_scale": widgets.FloatText(
            value=settings.guidance_scale,
            step=0.5,
            description="guidance",
            layout=_size("170px"),
            tooltip="classifier-free guidance: 1 is the conditional model",
        ),
        "num_steps": widgets.IntText(
            value=settings.num_steps,
            description="steps",
            layout=_size("170px"),
            tooltip="steps of the whole run",
        ),
        "solver": widgets.Dropdown(
            options=solvers,
            value=settings.solver,
            description="solver",
            layout=_size("190px"),
            tooltip="solver",
        ),
    }


def row(children: list) -> widgets.HBox:
    """Widgets beside each other, on further lines where they do not fit."""
    return widgets.HBox(children, layout=widgets.Layout(flex_flow="row wrap", max_width="100%"))


def _size(width: str) -> widgets.Layout:
    return widgets.Layout(width=width, max_width="100%")


_WIDE = {"description_width": "initial"}
