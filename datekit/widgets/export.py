"""What is on screen, to take away: a picture, an animation, and the Python that makes it again."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from .. import rewards
from ..rewards.base import Reward
from ..schedules import every, steps
from ..serialize import DEFINED, describe
from .controller import ROWS, Controller
from .settings import Settings

SIDE = 512  # least width of a picture, in pixels
GIVEN = "  # the one that dk.explore was given"


def python(controller: Controller) -> str:
    """Lines that make `image`, the picture on screen, to the bit.

    A backbone or reward that has no name to load it by is left to the reader: the line says so.
    """
    rows = [row for row in controller.timelines["run"] if row[0] <= controller.last]
    ends = [*(start for start, _ in rows[1:]), controller.last + 1]
    imports, lines, reward = [], [f"backbone = {_backbone_code(controller)}"], ""
    for (start, settings), end in zip(rows, ends, strict=True):
        imports.append(f"from {settings.method_class.__module__} import {settings.method}")
        if settings.reward not in ("", reward):
            reward = settings.reward
            lines.append(f"reward = {_reward_code(controller.rewards[reward])}")
        given = f"guidance_scale={settings.guidance_scale!r}"
        if start:
            lines.append(f"run = run.fork({settings.method}({_options_code(settings)}), {given})")
        else:
            given += f", num_steps={settings.num_steps}, solver={settings.solver!r}"
            lines += _begin_code(settings, given)
        lines.append(f"info = run.step({end - start})")
    final = controller.shown == controller.num_steps
    made, n = "run" if final else "info.replace(x0bar=info.x0bar_hat)", "0"
    if settings.method == "FKSteering":
        n = "sampler.best(run.state)[0]" if final else "run.rewards(reward)[-1].argmax()"
    made += f".images[{n}]"
    lines.append(f"image = {made}  # {controller.place}")
    head = ["import torch", "", "import datekit as dk", *dict.fromkeys(imports), ""]
    return "\n".join([*head, *lines, ""])


def png(controller: Controller) -> bytes:
    """The pictures on screen side by side, with names and numbers."""
    return encode(_beside(controller, controller.shown).save, "PNG")


def gif(controller: Controller, milliseconds: int = 200) -> bytes:
    """The pictures of all steps so far, side by side, as an endless GIF."""
    finished = controller.head == controller.num_steps
    first, *others = [_beside(controller, i) for i in range(controller.head + finished)]
    times = [*[milliseconds] * len(others), 5 * milliseconds]
    moving = {"save_all": True, "append_images": others, "duration": times, "loop": 0}
    return encode(first.save, "GIF", **moving)


def encode(save: Callable, kind: str, **options) -> bytes:
    """The bytes that a picture or a figure saves to a file."""
    buffer = io.BytesIO()
    save(buffer, format=kind, **options)
    return buffer.getvalue()


def enlarge(picture: Image.Image, least: int) -> Image.Image:
    """A picture with each pixel made so many that it is at least so wide."""
    zoom = -(-least // picture.width)
    return picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)


def _begin_code(settings: Settings, given: str) -> list[str]:
    """Lines that start a run of settings; given: arguments of its sampler beside the method."""
    words, begin = _options_code(settings), f"start([{settings.prompt!r}], seeds=[{settings.seed}])"
    sampler, run = f"dk.Sampler(backbone, {settings.method}({words}), {given})", f"sampler.{begin}"
    if settings.method == "FKSteering":
        sampler = f"FKSteering(backbone, reward={words}, {given})"
    if settings.method == "ReNO":
        sampler = f"dk.Sampler(backbone, {given})"
        run = f"ReNO(sampler, {words}).{begin}.finish().run"
    return [f"sampler = {sampler}", f"run = {run}"]


def _options_code(settings: Settings) -> str:
    """The options of the method as Python, the reward under the name `reward`."""
    given = dict(settings.options)
    if "rho" in settings.fields:
        given = {"rho": settings.value("rho"), **given}  # the one that readers move
    words = ["reward"] if settings.reward else []
    words += [f"{name}={_code(value)}" for name, value in given.items()]
    return ", ".join(words)


def _code(value: Any) -> str:
    if isinstance(value, every):
        return f"dk.every({value.k})"
    return f"dk.steps{value.wanted}" if isinstance(value, steps) else repr(value)


def _reward_code(reward: Reward) -> str:
    """A reward as Python; where it has no name to load it by, a line that says so."""
    try:
        terms = [f"{weight!r} * {_made(describe(part))}" for weight, part in reward.terms()]
    except (KeyError, AttributeError):  # it is a function, or a class of somebody's own
        return f"reward{GIVEN}"
    return " + ".join(terms).removeprefix("1.0 * ")


def _made(about: Any) -> str:
    """What makes again what `serialize.describe` told of."""
    if isinstance(about, list):
        return f"({''.join(f'{_made(item)}, ' for item in about)})"
    if not isinstance(about, dict):
        return repr(about)
    given = {name: value for name, value in about.items() if name not in DEFINED}
    words = [f"{name}={_made(value)}" for name, value in given.items()]
    return f"dk.rewards.{getattr(rewards, about['type']).__name__}({', '.join(words)})"


def _backbone_code(controller: Controller) -> str:
    about = describe(controller.backbone)
    if "opaque" in about:
        return f"backbone{GIVEN}"
    given = {"device": about["device"]} | about["settings"]
    words = [f"{name}={value!r}" for name, value in given.items()]
    return f"dk.load({about['backbone']!r}, dtype={about['dtype']}, {', '.join(words)})"


def _beside(controller: Controller, i: int) -> Image.Image:
    """The pictures of step i side by side, each under its name, over the settings."""
    frames = {row: controller.frame(row, i) for row in controller.timelines}
    pictures = [enlarge(frame.picture, SIDE) for frame in frames.values()]
    settings, (width, height) = controller.settings, pictures[0].size
    place = f"{settings.prompt}, seed {settings.seed}, step {i} of {settings.num_steps}"
    lines = textwrap.wrap(f"{place}; {controller.story}", len(frames) * width // 11)
    canvas = Image.new("RGB", (len(frames) * width, height + 34 + 24 * len(lines)), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(18)
    for column, (row, frame) in enumerate(frames.items()):
        canvas.paste(pictures[column], (column * width, 30))
        words = f"{ROWS[row]}, h {frame.values[settings.reward]:.3f}"
        draw.text((column * width + 4, 3), words, fill="black", font=font)
    draw.text((4, height + 32), "\n".join(lines), fill="black", font=font)
    return canvas
