"""The explorer's controls: one widget for each setting, made from what the registry says of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import Field
from functools import partial
from typing import Any

import ipywidgets as widgets

from .. import registry
from ..schedules import early, every, late, middle
from ..solvers import SOLVERS
from .controller import Controller
from .settings import FIRST, OCTAVE, Settings, default, method_names, notch, only

CELLS = 100  # of the strip of steps; a run of more has the presets only
MORE = "more ..."  # of the menu of methods: the others
PRESETS = {"every step": every(), "early": early(), "middle": middle(), "late": late()}


class Controls:
    """Widgets by the names of the settings, a slider of rho, and a strip of steps with presets.

    changed: called with the settings that a control now has.
    """

    def __init__(self, controller: Controller, changed: Callable[..., None]) -> None:
        self.controller, self.changed = controller, changed
        self.fields: dict[str, widgets.Widget] = {}
        names = method_names(controller.settings)
        methods = {name: Settings(method=name).method_class for name in names}
        self.methods = [(method.label, name) for name, method in methods.items()]
        self.more = False  # whether the menu has them all
        menus = {
            "method": self.methods,
            "reward": list(controller.rewards),
            "solver": list(dict.fromkeys([controller.settings.solver, *SOLVERS])),
        }
        for owner in (Settings, *methods.values()):
            for name, field in registry.options(owner).items():
                if name not in self.fields and (control := make_control(name, field, menus)):
                    self.fields[name] = control
        self.fields["rho"].description = "rho ="
        self.rho = make_slider(registry.options(methods["DATE"])["rho"])
        self._show_fields()
        for name, control in self.fields.items():
            control.observe(partial(self._take, name), "value")
        self.rho.observe(lambda change: changed(rho=notch(change["new"])), "value")
        self.k = widgets.IntText(value=5, **looks("k", "k of every k", "140px"))
        self.presets = {}
        for name in (*PRESETS, "every k"):
            tip, act = f"update in these steps: {name}", partial(self._take_preset, name)
            self.presets[name] = button(name, tip, act)
        self.cells: list[widgets.ToggleButton] = []
        self.strip = row([])

    def show(self) -> None:
        """Bring all in line with the controller, also a control whose value it has refused."""
        self._show_fields()
        settings, updates = self.controller.settings, self.controller.updates
        reads = "when" in settings.fields
        for preset in self.presets.values():
            preset.disabled = not reads
        count = settings.num_steps if settings.num_steps <= CELLS else 0
        while len(self.cells) < count:
            self.cells.append(self._cell(len(self.cells)))
        self.strip.children = self.cells
        for i, cell in enumerate(self.cells):
            cell.layout.display = None if i < count else "none"
            cell.value, cell.disabled = i in updates, not reads or i < self.controller.base
            cell.button_style = "primary" if cell.value else ""
            cell.tooltip = f"step {i} {'updates' if cell.value else 'does not update'}"

    def _show_fields(self) -> None:
        settings, menu = self.controller.settings, self.fields["method"]
        self.more = self.more or settings.method not in FIRST
        methods = self.methods if self.more else [*self.methods[: len(FIRST)], (MORE, MORE)]
        if menu.options != tuple(methods):
            menu.options = methods
        for name, control in self.fields.items():
            read = name in vars(settings) or name in settings.fields
            control.layout.display = None if read else "none"
            if read:
                control.value = settings.value(name)
        self.rho.disabled = "rho" not in settings.fields
        if not self.rho.disabled:
            ends = self.rho.base**self.rho.min, self.rho.base**self.rho.max
            rho = min(max(settings.value("rho"), ends[0]), ends[1])
            if notch(self.rho.value) != rho:  # a hand may be on it
                self.rho.value = rho

    def _take(self, name: str, change: dict) -> None:
        self.more = self.more or change["new"] == MORE
        self.changed(**{} if change["new"] == MORE else {name: change["new"]})

    def _take_preset(self, name: str) -> None:
        self.changed(when=every(self.k.value) if name == "every k" else PRESETS[name])

    def _cell(self, i: int) -> widgets.ToggleButton:
        layout = widgets.Layout(width="28px", height="24px", padding="0", margin="1px")
        cell = widgets.ToggleButton(description=str(i), style={"font_size": "10px"}, layout=layout)
        cell.observe(lambda _: self.changed(when=only(self._marks())), "value")
        return cell

    def _marks(self) -> list[int]:
        return [i for i, cell in enumerate(self.cells) if cell.value]


def make_control(name: str, field: Field, menus: dict[str, Sequence]) -> widgets.Widget | None:
    """The control of an option; None where its default is no number, word or truth value."""
    about, value = field.metadata, default(field)
    kinds = {bool: widgets.Checkbox, int: widgets.IntText, float: widgets.FloatText}
    if not isinstance(value, (str, *kinds)):
        return None
    described, choices = looks(about["label"] or name, about["help"]), menus.get(name)
    if choices or about["choices"]:
        return widgets.Dropdown(options=choices or about["choices"], **described)
    if isinstance(value, str):
        described["layout"].width = "98%" if name == "prompt" else "400px"
        return widgets.Text(continuous_update=False, **described)
    return kinds[type(value)](**described)


def make_slider(field: Field) -> widgets.FloatLogSlider:
    """The slider of rho; a number beyond its ends is typed beside it."""
    most = math.log2(field.metadata["range"][1])
    bounds = {"base": 2, "min": most - 8, "max": most + 5, "step": 1 / OCTAVE, "readout": False}
    return widgets.FloatLogSlider(**bounds, **looks("rho", field.metadata["help"], "100%"))


def looks(description: str, tooltip: str, width: str = "200px") -> dict[str, Any]:
    """What a control is called, what it does, and how wide it is."""
    layout = widgets.Layout(width=width, max_width="100%")
    return {"description": description, "tooltip": tooltip, "layout": layout}


def button(name: str, tooltip: str, act: Callable[[], None]) -> widgets.Button:
    """A button that does something when it is pressed."""
    made = widgets.Button(**looks(name, tooltip, "auto"))
    made.on_click(lambda _: act())
    return made


def row(children: list) -> widgets.HBox:
    """Widgets beside each other, on further lines where they do not fit."""
    return widgets.HBox(children, layout=widgets.Layout(flex_flow="row wrap", max_width="100%"))
