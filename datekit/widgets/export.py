"""What is on screen, to take away: a picture, an animation, and the Python that makes it again."""

from __future__ import annotations

import io
from typing import Any

from .. import methods, registry, rewards
from ..methods.rho_rules import RhoRule
from ..rewards.base import Reward
from ..schedules import Schedule, every, fraction, predicate, steps, third
from ..serialize import describe
from .controller import ROWS, Controller
from .library import Timeline, changes
from .pictures import PICTURES
from .settings import Settings, arguments, reads_reward

GIVEN = "  # the one that dk.explore was given"


def python(controller: Controller) -> str:
    """Lines that make `image`, the picture on screen, and `fixed_image`, its twin's, to the bit.

    A backbone or reward that has no name to load it by is left to the reader: the line says so.
    """
    lines = [f"backbone = {_backbone_code(controller)}"]
    for name in ("run", "fixed"):
        lines += ["", *_run_code(controller, changes(controller.timelines[name]), name)]
    imports = ["import torch"] if "torch." in lines[0] else []
    classes = {cls for _, settings in controller.timeline for cls in settings.methods}
    own = [f"from {cls.__module__} import {cls.__name__}" for cls in classes if not _ships(cls)]
    return "\n".join([*imports, "import datekit as dk", *own, "", *lines, ""])


def png(controller: Controller) -> bytes:
    """All pictures of the step on screen in a grid, with names and numbers."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from ..plot import tiles

    frames = {name: controller.frame(name) for name in controller.timelines}
    size = (1.5 * len(PICTURES) + 1.6, 1.6 * len(frames) + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    rows = []
    for frame in frames.values():
        size = frame.pictures["decoded"].size
        rows.append([_array(frame.pictures[name], size) for name in PICTURES])
    names = [f"{ROWS[name]}\nh {frame.h:.3f}" for name, frame in frames.items()]
    ax = tiles(rows, columns=list(PICTURES), rows_named=names, ax=figure.add_subplot())
    settings = controller.settings
    about = f"{settings.prompt!r}, seed {settings.seed}, {place(controller)}\n{settings}"
    ax.set_xlabel(about, fontsize=8, parse_math=False)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def gif(controller: Controller, milliseconds: int = 200) -> bytes:
    """The expected picture step by step, the rows of the screen side by side, as an endless GIF."""
    from PIL import Image, ImageDraw

    steps = [*range(max(controller.head, 1)), *([controller.num_steps] if controller.done else [])]
    width, height = controller.frame(i=0).pictures["decoded"].size
    zoom, gap, above = max(1, 128 // width), 6, 14
    side = (width * zoom, height * zoom)
    frames = []
    for i in steps:
        whole = (len(controller.timelines) * (side[0] + gap) - gap, side[1] + above)
        canvas = Image.new("RGB", whole, "white")
        for column, (name, timeline) in enumerate(controller.timelines.items()):
            x = column * (side[0] + gap)
            picture = controller.library.picture(timeline, i)[0]
            canvas.paste(picture.resize(side, Image.Resampling.NEAREST), (x, above))
            words = ROWS[name] if column else f"step {i}"
            ImageDraw.Draw(canvas).text((x + 2, 1), words, fill="black")
        frames.append(canvas)
    buffer = io.BytesIO()
    times = [milliseconds] * (len(frames) - 1) + [5 * milliseconds]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=times, loop=0)
    return buffer.getvalue()


def place(controller: Controller) -> str:
    """Which picture is on screen, in words."""
    if controller.shown == controller.num_steps:
        return "the final picture"
    return f"the expected picture at step {controller.shown}"


def method_code(settings: Settings) -> str:
    """The methods as Python, the reward under the name `reward`."""
    if "when" in settings.fields and not settings.updates:
        return "dk.Fixed()"
    parts = []
    for cls in settings.methods:
        reward = ["reward"] if reads_reward(cls) else []
        parts.append(f"{_class_code(cls)}({', '.join([*reward, *_words(settings, cls)])})")
    return " + ".join(parts)


def _words(settings: Settings, cls: type) -> list[str]:
    given = arguments(settings, cls)
    if "rho" in registry.options(cls):
        given = {"rho": settings.value("rho"), **given}  # the one that readers move
    if isinstance(given.get("when"), predicate):
        given["when"] = steps(*settings.updates)  # a function has no lines to show
    return [f"{name}={_code(value)}" for name, value in given.items()]


def _class_code(cls: type) -> str:
    return f"dk.{cls.__name__}" if _ships(cls) else cls.__name__


def _ships(cls: type) -> bool:
    return cls.__module__.startswith(methods.__name__)


def _code(value: Any) -> str:
    if isinstance(value, Schedule):
        return schedule_code(value)
    return f"dk.rho_rules.{value!r}" if isinstance(value, RhoRule) else repr(value)


def schedule_code(when: Schedule) -> str:
    """A schedule as Python."""
    if isinstance(when, every):
        return f"dk.every({when.k})"
    if isinstance(when, fraction):
        return f"dk.fraction({when.share!r})"
    if isinstance(when, third):
        return f"dk.{('early', 'middle', 'late')[when.which]}()"
    return f"dk.steps({', '.join(map(str, when.wanted))})"


def _run_code(controller: Controller, rows: Timeline, name: str) -> list[str]:
    """The lines of one run, from its first settings through each change to the step on screen."""
    shown = controller.shown
    rows = tuple(row for row in rows if row[0] <= controller.last)
    lines, known = [], None
    for n, (start, settings) in enumerate(rows):
        if any(map(reads_reward, settings.methods)) and settings.weights != known:
            lines.append(f"reward = {_reward_code(controller, settings)}")
            known = settings.weights
        guidance = f"guidance_scale={settings.guidance_scale!r}"
        if n == 0:
            lines += [
                f"sampler = dk.Sampler(backbone, {method_code(settings)}, "
                f"num_steps={settings.num_steps}, {guidance}, solver={settings.solver!r})",
                f"{name} = sampler.start([{settings.prompt!r}], seeds=[{settings.seed}])",
            ]
        else:
            lines.append(f"{name} = {name}.fork({method_code(settings)}, {guidance})")
        end = rows[n + 1][0] if n + 1 < len(rows) else controller.last + 1
        lines += [f"info = {name}.step({end - start})"] if end > start else []
    image = "image" if name == "run" else f"{name}_image"
    final = shown == controller.num_steps
    made = f"{name}.images[0]" if final else "info.replace(x0bar=info.x0bar_hat).images[0]"
    return [*lines, f"{image} = {made}  # {place(controller)}"]


def _backbone_code(controller: Controller) -> str:
    about = describe(controller.backbone)
    if "opaque" in about:
        return f"backbone{GIVEN}"
    settings = "".join(f", {name}={value!r}" for name, value in about["settings"].items())
    place = f"device={about['device']!r}, dtype={about['dtype']}"
    return f"dk.load({about['backbone']!r}, {place}{settings})"


def _reward_code(controller: Controller, settings: Settings) -> str:
    """The weighted sum, each of its terms loaded once."""
    terms = [
        (weight, controller.rewards.parts[name]) for name, weight in settings.weights if weight
    ]
    made = [_load_code(part) for _, part in terms]
    if None in made:
        named = " + ".join(f"{float(weight)!r} * {part.name!r}" for weight, part in terms)
        return f"reward{GIVEN}, as set there: {named}"
    if len(terms) == 1 and terms[0][0] == 1:
        return made[0]
    weighted = [f"{float(w)!r} * {code}" for (w, _), code in zip(terms, made, strict=True)]
    return " + ".join(weighted)


def _load_code(part: Reward) -> str | None:
    about = part.describe() or {}
    words = [f"device={about['device']!r}"] if "device" in about else []
    if "shipped" in about:
        return f"dk.rewards.load({', '.join([repr(about['shipped']), *words])})"
    if "settings" not in about or not hasattr(rewards, type(part).__name__):
        return None
    settings = [f"{name}={value!r}" for name, value in about["settings"].items()]
    return f"dk.rewards.{type(part).__name__}({', '.join([*settings, *words])})"


def _array(picture, size: tuple[int, int]):
    import numpy as np
    from PIL import Image

    large = picture.convert("RGB").resize(size, Image.Resampling.NEAREST)
    return np.asarray(large, np.float32) / 255
