"""The explorer's controls: one widget for each setting, made from what the registry says of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import Field
from typing import Any

import ipywidgets as widgets

from .. import registry, schedules
from .controller import Controller
from .settings import RULES, solvers_of

CELLS = 100  # of the strip of steps; a run of more has the presets only
PRESETS = {
    "every k": schedules.every,
    "early": schedules.early,
    "middle": schedules.middle,
    "late": schedules.late,
    "none": lambda: None,
}


class Controls:
    """Widgets by the names of the settings, a strip of steps with presets, weights of rewards.

    changed: called with the settings that a control now has; marked: called with the number of a
    step and whether it shall update. An option has a control where its default is a number, a word
    or a truth value; it is seen while the chosen method or rule reads it.
    """

    def __init__(
        self,
        controller: Controller,
        changed: Callable[..., None],
        marked: Callable[[int, bool], None],
    ) -> None:
        self.marked = marked
        settings = controller.settings
        self.fields = _sampler_controls(controller)
        rules = registry.entries(RULES)
        self.fields["rule"] = widgets.Dropdown(
            options=[("constant", ""), *((cls.label, name) for name, cls in rules.items())],
            value=settings.rule,
            **_about(
                "rule", "what chooses rho at each update, at most the rho that is set", "220px"
            ),
        )
        self.options: dict[str, Any] = {}
        for cls in [*settings.methods, *registry.entries("method").values(), *rules.values()]:
            for name, field in registry.options(cls).items():
                if name not in (*self.options, "reward", "when", "most"):
                    control = option_control(name, field, dict(settings.options))
                    self.options |= {name: control} if control else {}
        self.fields |= self.options
        self.weights = {
            name: widgets.FloatText(
                value=weight, step=0.1, **_about(name, f"weight of the reward {name}", "250px")
            )
            for name, weight in settings.weights
        }
        self.k = widgets.BoundedIntText(value=5, min=1, **_about("k", "k of every k", "90px"))
        self.presets = {
            name: widgets.Button(**_about(name, f"update in these steps: {name}", "auto"))
            for name in PRESETS
        }
        self.strip = row([])
        self.cells: list[widgets.ToggleButton] = []
        for name, field in self.fields.items():
            field.observe(lambda change, name=name: changed(**{name: change["new"]}), "value")
        for field in self.weights.values():
            field.observe(lambda _: changed(weights=self._weights()), "value")
        for name, button in self.presets.items():
            button.on_click(lambda _, name=name: changed(when=self._preset(name)))
        self.refresh(controller)

    @property
    def box(self) -> widgets.Widget:
        """All of them, in rows that wrap."""
        every, *others = self.presets.values()
        rows = [["prompt", "seed"], ["method", "rule", *self.options]]
        rows.append(["guidance_scale", "num_steps", "solver"])
        return widgets.VBox(
            [
                *(row([self.fields[name] for name in names]) for names in rows),
                row(list(self.weights.values())),
                row([widgets.Label("updates in"), every, self.k, *others]),
                self.strip,
            ]
        )

    def refresh(self, controller: Controller) -> None:
        """Show what the method reads, and bring the strip in line with the controller."""
        settings = controller.settings
        for name, control in self.options.items():
            control.layout.display = None if name in settings.fields else "none"
            if name in settings.fields and name not in dict(settings.options):
                _assign(control, "value", settings.value(name))
        reads = "when" in settings.fields
        for button in self.presets.values():
            button.disabled = not reads
        past = controller.head if controller.paused else 0
        count = settings.num_steps if settings.num_steps <= CELLS else 0
        while len(self.cells) < count:
            self.cells.append(self._cell(len(self.cells)))
        if len(self.strip.children) != count:
            self.strip.children = self.cells[:count]
        updates = settings.updates
        for i, cell in enumerate(self.cells[:count]):
            on = i in updates
            _assign(cell, "value", on)
            _assign(cell, "disabled", not reads or i < past)  # nothing changes the past any more
            _assign(cell, "button_style", "primary" if on else "")
            _assign(cell, "tooltip", f"step {i} {'updates' if on else 'does not update'}")

    def move(self, name: str, value: Any) -> None:
        """Bring a control to a value, as a user would; a slider is made longer if need be."""
        control = self.fields[name]
        if isinstance(control, widgets.FloatLogSlider) and value > control.base**control.max:
            control.max = math.ceil(math.log2(value))
        control.value = value

    def _cell(self, i: int) -> widgets.ToggleButton:
        layout = widgets.Layout(width="28px", height="24px", padding="0", margin="1px")
        cell = widgets.ToggleButton(description=str(i), style={"font_size": "10px"}, layout=layout)
        cell.observe(lambda change: self.marked(i, change["new"]), "value")
        return cell

    def _weights(self) -> dict[str, float]:
        return {name: float(field.value) for name, field in self.weights.items()}

    def _preset(self, name: str) -> schedules.Schedule | None:
        return PRESETS[name](self.k.value) if name == "every k" else PRESETS[name]()


def option_control(name: str, field: Field, given: dict[str, Any]) -> widgets.Widget | None:
    """The control of one option, as its default and its metadata say; None where it has no control.

    given: options that are set, by name. Raises ValueError for a slider of octaves at 0.
    """
    about = field.metadata
    value = given.get(name, field.default)
    if not isinstance(value, (int, float, str)):
        return None
    looks = _about(about["label"] or name, about["help"], "250px")
    if about["choices"]:
        return widgets.Dropdown(options=about["choices"], value=value, **looks)
    if isinstance(value, bool):
        return widgets.Checkbox(value=value, indent=False, **looks)
    if isinstance(value, float) and about["range"]:
        return _slider(name, value, about["range"], looks)
    if isinstance(value, str):
        return widgets.Text(value=value, continuous_update=False, **looks)
    return (widgets.IntText if isinstance(value, int) else widgets.FloatText)(value=value, **looks)


def _slider(name: str, value: float, bounds: tuple[float, float], looks: dict) -> widgets.Widget:
    """A slider of octaves, from 8 below the usual end, where that begins at 0, to 4 beyond it."""
    if value <= 0:
        raise ValueError(
            f"the slider of {name} is logarithmic and cannot stand at {value!r}; for no update "
            "take method='Fixed'"
        )
    least, here = math.log2(bounds[0] or bounds[1] / 2**8), math.log2(value)
    return widgets.FloatLogSlider(
        value=value,
        base=2,
        min=min(least, math.floor(here)),
        max=max(math.log2(bounds[1]) + 4, math.ceil(here)),
        step=0.25,
        readout_format=".3g",
        **looks,
    )


def _sampler_controls(controller: Controller) -> dict[str, widgets.Widget]:
    settings = controller.settings
    guidance = "classifier-free guidance; 1 is the conditional model"
    labels = [
        (_label(name), name) for name in dict.fromkeys([*controller.methods(), settings.method])
    ]
    solvers = list(dict.fromkeys([*solvers_of(controller.backbone), settings.solver]))
    return {
        "prompt": widgets.Text(
            value=settings.prompt, continuous_update=False, **_about("prompt", "prompt", "400px")
        ),
        "seed": widgets.IntText(value=settings.seed, **_about("seed", "seed of the noise")),
        "method": widgets.Dropdown(
            options=labels, value=settings.method, **_about("method", "method", "250px")
        ),
        "guidance_scale": widgets.FloatText(
            value=settings.guidance_scale, step=0.5, **_about("guidance", guidance)
        ),
        "num_steps": widgets.IntText(
            value=settings.num_steps, **_about("steps", "steps of the whole run")
        ),
        "solver": widgets.Dropdown(
            options=solvers, value=settings.solver, **_about("solver", "solver", "190px")
        ),
    }


def _label(method: str) -> str:
    return " + ".join(registry.find("method", name).label for name in method.split(" + "))


def _about(description: str, tooltip: str, width: str = "170px") -> dict[str, Any]:
    return {"description": description, "tooltip": tooltip, "layout": _size(width)}


def _assign(widget: widgets.Widget, name: str, value: Any) -> None:
    """Set a trait that has another value."""
    if getattr(widget, name) != value:
        setattr(widget, name, value)


def row(children: list) -> widgets.HBox:
    """Widgets beside each other, on further lines where they do not fit."""
    return widgets.HBox(children, layout=widgets.Layout(flex_flow="row wrap", max_width="100%"))


def _size(width: str) -> widgets.Layout:
    return widgets.Layout(width=width, max_width="100%")
