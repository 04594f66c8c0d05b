"""The explorer's controls: one widget for each setting, made from what the registry says of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import Field
from typing import Any

import ipywidgets as widgets

from .. import registry
from ..schedules import early, every, late, middle
from ..solvers import SOLVERS
from .controller import Controller
from .settings import default, method_names, only, options_of

CELLS = 100  # of the strip of steps; a run of more has the presets only
PRESETS = {"every step": every(), "early": early(), "middle": middle(), "late": late()}


class Controls:
    """Widgets by the names of the settings, and a strip of steps with presets.

    changed: called with the settings that a control now has.
    """

    def __init__(self, controller: Controller, changed: Callable[..., None]) -> None:
        self.controller, self.changed = controller, changed
        self.fields = _sampler_fields(controller)
        for method in method_names(controller.settings):
            for name, field in options_of(registry.find("method", method)).items():
                if name not in self.fields and (control := option_control(name, field)):
                    self.fields[name] = control
        self._show_fields(())
        for name, control in self.fields.items():
            control.observe(lambda change, name=name: changed(**{name: change["new"]}), "value")
        self.k = widgets.BoundedIntText(value=5, min=1, **looks("k", "k of every k", "90px"))
        self.presets = {
            name: widgets.Button(**looks(name, f"update in these steps: {name}", "auto"))
            for name in (*PRESETS, "every k")
        }
        for name, when in PRESETS.items():
            self.presets[name].on_click(lambda _, when=when: changed(when=when))
        self.presets["every k"].on_click(lambda _: changed(when=every(self.k.value)))
        self.cells: list[widgets.ToggleButton] = []
        self.strip = row([])

    def show(self, refused: Collection[str]) -> None:
        """Bring all in line with the controller, but for the settings that it has refused."""
        self._show_fields(refused)
        settings, updates = self.controller.settings, self.controller.updates
        reads = "when" in settings.fields
        for button in self.presets.values():
            button.disabled = not reads
        count = settings.num_steps if settings.num_steps <= CELLS else 0
        while len(self.cells) < count:
            self.cells.append(self._cell(len(self.cells)))
        if len(self.strip.children) != count:
            self.strip.children = self.cells[:count]
        for i, cell in enumerate(self.cells[:count]):
            cell.value, cell.disabled = i in updates, not reads or i < self.controller.base
            cell.button_style = "primary" if cell.value else ""
            cell.tooltip = f"step {i} {'updates' if cell.value else 'does not update'}"

    def _show_fields(self, refused: Collection[str]) -> None:
        settings = self.controller.settings
        for name, control in self.fields.items():
            read = name in vars(settings) or name in settings.fields
            control.layout.display = None if read else "none"
            if read and name not in refused:
                control.value = value = settings.value(name)
                if control.value != value:  # a slider has two ends
                    raise ValueError(f"the control of {name} cannot show {value!r}")

    def _cell(self, i: int) -> widgets.ToggleButton:
        layout = widgets.Layout(width="28px", height="24px", padding="0", margin="1px")
        cell = widgets.ToggleButton(description=str(i), style={"font_size": "10px"}, layout=layout)
        cell.observe(lambda _: self.changed(when=only(self._marked())), "value")
        return cell

    def _marked(self) -> list[int]:
        return [i for i, cell in enumerate(self.strip.children) if cell.value]


def option_control(name: str, field: Field) -> widgets.Widget | None:
    """The control of an option; None where its default is no number, word or truth value."""
    about, value = field.metadata, default(field)
    kinds = {bool: widgets.Checkbox, str: widgets.Text, int: widgets.IntText}
    control = {**kinds, float: widgets.FloatText}.get(type(value))
    if control is None:
        return None
    described = looks(about["label"] or name, about["help"], "250px")
    if about["choices"]:
        return widgets.Dropdown(options=about["choices"], **described)
    if isinstance(value, float) and about["range"]:
        most = math.log2(about["range"][1])
        bounds = {"base": 2, "min": most - 8, "max": most + 5, "step": 0.25}
        return widgets.FloatLogSlider(value=value, readout_format=".3g", **bounds, **described)
    return control(**described)


def _sampler_fields(controller: Controller) -> dict[str, widgets.Widget]:
    settings = controller.settings
    names = dict.fromkeys([*method_names(controller.settings), settings.method])
    methods = [(registry.find("method", name).label, name) for name in names]
    solvers = list(dict.fromkeys([settings.solver, *SOLVERS]))
    guidance = "classifier-free guidance; 1 is the conditional model"
    menu, typed = widgets.Dropdown, {"continuous_update": False}
    return {
        "prompt": widgets.Text(**looks("prompt", "what to draw", "400px"), **typed),
        "seed": widgets.IntText(**looks("seed", "seed of the noise")),
        "method": menu(options=methods, **looks("method", "what each step feeds the network")),
        "reward": menu(options=list(controller.rewards), **looks("reward", "what is climbed")),
        "guidance_scale": widgets.FloatText(step=0.5, **looks("guidance", guidance)),
        "num_steps": widgets.IntText(**looks("steps", "steps of the whole run")),
        "solver": menu(options=solvers, **looks("solver", "how each step is taken")),
    }


def looks(description: str, tooltip: str, width: str = "200px") -> dict[str, Any]:
    """What a control is called, what it does, and how wide it is."""
    layout = widgets.Layout(width=width, max_width="100%")
    return {"description": description, "tooltip": tooltip, "layout": layout}


def row(children: list) -> widgets.HBox:
    """Widgets beside each other, on further lines where they do not fit."""
    return widgets.HBox(children, layout=widgets.Layout(flex_flow="row wrap", max_width="100%"))
