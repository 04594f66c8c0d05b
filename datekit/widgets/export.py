"""What is on screen, to take away: a picture, an animation, and the lines of Python that make it again."""

from __future__ import annotations

import io

from ..backbones import CLOSED_FORM
from ..backbones import SHIPPED as SHIPPED_MODELS
from ..rewards import SHIPPED
from ..rewards.base import Reward
from ..serialize import describe
from .branch import PICTURES
from .controller import ROWS, Controller
from .library import Timeline, changes
from .settings import Settings, method_code

GIVEN = "  # the one that dk.explore was given"


def python(controller: Controller) -> str:
    """Lines that end with `image`, the decoded picture on screen, and `fixed_image`, its twin's, to the same bits.

    A backbone or reward that has no name to load it by is left to the reader: the line says so.
    """
    backbone = _backbone_code(controller)
    lines = [
        *(["import torch", ""] if "torch." in backbone else []),
        "import datekit as dk",
        "",
        f"backbone = {backbone}",
    ]
    for name in ("run", "fixed"):
        lines += ["", *_run_code(controller, controller.timelines[name], name)]
    return "\n".join(lines) + "\n"


def png(controller: Controller) -> bytes:
    """All pictures of the step on screen in a grid with names and numbers; figures by Agg, no window."""
    from matplotlib.figure import Figure

    from ..plot import tiles

    frames = {name: controller.frame(name) for name in controller.timelines}
    figure = Figure(
        figsize=(1.5 * len(PICTURES) + 1.6, 1.6 * len(frames) + 0.9), layout="constrained"
    )
    rows = [
        [_array(frame.pictures[name], frame.pictures["decoded"].size) for name in PICTURES]
        for frame in frames.values()
    ]
    names = [f"{ROWS[name]}\nh {frame.h:.3f}" for name, frame in frames.items()]
    ax = tiles(rows, columns=list(PICTURES), rows_named=names, ax=figure.add_subplot())
    settings = controller.settings
    ax.set_xlabel(
        f"{settings.prompt!r}, seed {settings.seed}, {place(controller)}\n{settings}", fontsize=8
    )
    return figure_png(figure, dpi=120)


def gif(controller: Controller, milliseconds: int = 200) -> bytes:
    """The expected picture step by step, this run beside its twin (and the run before the fork), as an endless GIF."""
    from PIL import Image, ImageDraw

    last = max(controller.head, 1)
    steps = [*range(last), *([controller.num_steps] if controller.done else [])]
    width, height = controller.branch().picture(0).size
    zoom, gap, above = max(1, 128 // width), 6, 14
    frames = []
    for i in steps:
        canvas = Image.new(
            "RGB",
            (len(controller.timelines) * (width * zoom + gap) - gap, height * zoom + above),
            "white",
        )
        draw = ImageDraw.Draw(canvas)
        for column, name in enumerate(controller.timelines):
            branch = controller.branch(name)
            picture = branch.picture(i).resize(
                (width * zoom, height * zoom), Image.Resampling.NEAREST
            )
            canvas.paste(picture, (column * (width * zoom + gap), above))
            draw.text(
                (column * (width * zoom + gap) + 2, 1),
                ROWS[name] if column else f"step {i}",
                fill="black",
            )
        frames.append(canvas)
    buffer = io.BytesIO()
    times = [milliseconds] * (len(frames) - 1) + [5 * milliseconds]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=times, loop=0)
    return buffer.getvalue()


def picture_png(picture, size: int) -> bytes:
    """A PIL image as PNG of a width from `size` to twice that: enlarged by a whole factor, or reduced."""
    from PIL import Image

    if picture.width < size:
        zoom = -(-size // picture.width)
        picture = picture.resize(
            (picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST
        )
    elif picture.width > 2 * size:
        picture = picture.resize(
            (2 * size, round(2 * size * picture.height / picture.width)), Image.Resampling.BOX
        )
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def figure_png(figure, dpi: int = 100) -> bytes:
    """A matplotlib figure as PNG, drawn by Agg."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def _run_code(controller: Controller, timeline: Timeline, name: str) -> list[str]:
    """The lines of one run, from its first settings through each change to the step on screen."""
    shown = controller.shown
    rows = [row for row in changes(timeline) if row[0] <= min(shown, controller.num_steps - 1)]
    lines, known = [], None
    for n, (start, settings) in enumerate(rows):
        if "reward" in settings.plain().uses and settings.weights != known:
            lines += _reward_code(controller, settings)
            known = settings.weights
        if n == 0:
            lines += [
                f"sampler = dk.Sampler(backbone, {method_code(settings)}, num_steps={settings.num_steps}, "
                f"guidance_scale={settings.guidance_scale!r}, solver={settings.solver!r})",
                f"{name} = sampler.start([{settings.prompt!r}], seeds=[{settings.seed}])",
            ]
        else:
            lines += [
                f"{name} = {name}.fork({method_code(settings)}, guidance_scale={settings.guidance_scale!r})"
            ]
        end = rows[n + 1][0] if n + 1 < len(rows) else shown + (shown < controller.num_steps)
        lines += [f"info = {name}.step({end - start})"] if end > start else []
    image = "image" if name == "run" else f"{name}_image"
    done = (
        f"{name}.images[0]"
        if shown == controller.num_steps
        else "info.replace(x0bar=info.x0bar_hat).images[0]"
    )
    return [*lines, f"{image} = {done}  # {place(controller)}"]


def place(controller: Controller) -> str:
    """Which picture is on screen, in words."""
    return (
        "the final picture"
        if controller.shown == controller.num_steps
        else f"the expected picture at step {controller.shown}"
    )


def _backbone_code(controller: Controller) -> str:
    spec = describe(controller.backbone)
    if "opaque" in spec:
        return f"backbone{GIVEN}"
    source, dtype = spec["backbone"], spec["dtype"]
    usual = (
        "torch.float64"
        if source in CLOSED_FORM
        else "torch.float32"
        if source in SHIPPED_MODELS
        else None
    )
    words = [repr(source), f"device={spec['device']!r}"]
    words += [] if dtype == usual else [f"dtype={dtype}"]
    return f"dk.load({', '.join([*words, *(f'{k}={v!r}' for k, v in spec.get('settings', {}).items())])})"


def _reward_code(controller: Controller, settings: Settings) -> list[str]:
    """`reward = ...`, each of its terms loaded once."""
    terms = [
        (weight, controller.rewards.parts[name]) for name, weight in settings.weights if weight
    ]
    made = [_load_code(part) for _, part in terms]
    if None in made:
        return [
            f"reward = reward{GIVEN}, as set there: "
            + " + ".join(f"{float(weight)!r} * {part.name}" for weight, part in terms)
        ]
    if len(terms) == 1 and terms[0][0] == 1:
        return [f"reward = {made[0]}"]
    return [
        f"reward = {' + '.join(f'{float(weight)!r} * {code}' for (weight, _), code in zip(terms, made, strict=True))}"
    ]


def _load_code(part: Reward) -> str | None:
    spec = describe(part)
    if "reward" not in spec:
        return None
    if part.name in SHIPPED:
        return f"dk.rewards.load({part.name!r}, device={spec['device']!r})"
    words = ", ".join(f"{name}={value!r}" for name, value in spec["settings"].items())
    return f"dk.rewards.{spec['reward']}({words}, device={spec['device']!r})"


def _array(picture, size: tuple[int, int]):
    import numpy as np
    from PIL import Image

    return (
        np.asarray(picture.convert("RGB").resize(size, Image.Resampling.NEAREST), np.float32) / 255
    )
