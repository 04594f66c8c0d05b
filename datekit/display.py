"""How runs, states and gradients show themselves: pictures and numbers, not tensors."""

from __future__ import annotations

import base64
import html
import io
import reprlib
from dataclasses import MISSING, fields
from typing import Any

from torch import Tensor

from .errors import has_numbers
from .tensors import norm, to_pil

SHOWN = 6  # samples; more do not fit a line
FIGURE = "margin:0 8px 8px 0;display:inline-block;width:148px;vertical-align:top;font-size:85%"
IMAGE = "width:144px;image-rendering:pixelated"


def summary(record: Any) -> str:
    """A dataclass in a line: tensors as shapes and norms, and nothing that is as by default."""
    shown = []
    for field in fields(record):
        value = getattr(record, field.name)
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if isinstance(value, Tensor):
            shown.append(f"{field.name}={_tensor(value)}")
        elif value is not default and value != default:
            many = isinstance(value, (tuple, list, dict))  # long ones are cut
            shown.append(f"{field.name}={reprlib.repr(value) if many else repr(value)}")
    return f"{type(record).__name__}({', '.join(shown)})"


def gradient_html(gradient) -> str:
    """A `RewardGradient` or `StepInfo`: x0bar of each sample over its numbers."""
    updated = ", embedding updated" if getattr(gradient, "updated", False) else ""
    title = f"{type(gradient).__name__}: step {gradient.i}, t = {gradient.t:g}{updated}"
    numbers = {"h": gradient.h, "||grad_c h||": gradient.grad_norm}
    numbers["||c - c_org||"] = getattr(gradient, "distance", None)
    images = gradient.replace(x0bar=gradient.x0bar[:SHOWN]).images
    return _panel(title, images, _samples(gradient, numbers))


def run_html(run) -> str:
    """A `Run`: the pictures as they stand over their prompts."""
    distance = run.history[-1].distance if len(run.history) else None
    samples = _samples(run, {"||c - c_org||": distance})
    return _panel(repr(run).strip("<>"), run.images, samples)


def history_html(history) -> str:
    """A `History`: x0bar_hat of the first sample at some steps."""
    chosen = [history[n * (len(history) - 1) // max(SHOWN - 1, 1)] for n in range(SHOWN)]
    infos = list(dict.fromkeys(chosen)) if history else []
    images = [info.images[0] for each in infos for info in [each.replace(x0bar=each.x0bar_hat[:1])]]
    lines = [[f"step {info.i}", "updated" * info.updated] for info in infos]
    return _panel(repr(history).strip("<>"), images, lines)


def state_html(state) -> str:
    """A `State`: the first channels of xt as colours, as no decoder belongs to a state."""
    xt = state.xt[:SHOWN, :3].float()
    grey = xt if xt.shape[1] == 3 else xt[:, :1].expand(-1, 3, -1, -1)
    title = f"State before step {state.i}, t = {state.t:g}; channels of xt as colours"
    return _panel(title, to_pil(0.5 + grey / 6), _samples(state, {"||xt||": norm(state.xt)}))


def _tensor(x: Tensor) -> str:
    shape = "x".join(map(str, x.shape)) or "number"
    if x.is_floating_point() and x.ndim and x.numel() and has_numbers(x):
        norms = [float(f"{value:.4g}") for value in norm(x[:SHOWN]).tolist()]
        return f"<{shape}, norm {', '.join(f'{value:g}' for value in norms)}>"
    return f"<{shape}>"


def _samples(shown, numbers: dict) -> list[list[str]]:
    """Prompt, seed and numbers of each sample; each number is (B,) or None."""
    samples = []
    for n, (prompt, seed) in enumerate(zip(shown.prompts, shown.seeds, strict=True)):
        known = {name: values[n].item() for name, values in numbers.items() if values is not None}
        told = [f"{name} = {value:.4g}" for name, value in known.items()]
        samples.append([prompt, f"seed {seed}", *told])
    return samples


def _panel(title: str, images: list, lines: list[list[str]]) -> str:
    """A title over pictures with their lines of text."""
    cells = []
    for image, told in zip(images[:SHOWN], lines, strict=False):
        image.thumbnail((288, 288))
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        data = base64.b64encode(buffer.getvalue()).decode()
        words = [html.escape(text) for text in told]
        picture = f'<img src="data:image/png;base64,{data}" style="{IMAGE}" alt="{words[0]}">'
        cells.append(f'<figure style="{FIGURE}">{picture}<br>{"<br>".join(words)}</figure>')
    if len(lines) > SHOWN:
        cells.append(f"<div>... and {len(lines) - SHOWN} more</div>")
    return f"<div><div><b>{html.escape(title)}</b></div>{''.join(cells)}</div>"
