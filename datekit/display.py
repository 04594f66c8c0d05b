"""How runs and gradients show themselves in a notebook: pictures and numbers, not tensors."""

from __future__ import annotations

import base64
import html
import io

SHOWN = 6  # samples; more do not fit a line
FIGURE = "margin:0 8px 8px 0;display:inline-block;width:148px;vertical-align:top;font-size:85%"
IMAGE = "width:144px;image-rendering:pixelated"


def gradient_html(gradient) -> str:
    """A `RewardGradient` or `StepInfo`: x0bar of each sample over its numbers."""
    updated = ", embedding updated" if getattr(gradient, "updated", False) else ""
    title = f"{type(gradient).__name__}: step {gradient.i}, t = {gradient.t:g}{updated}"
    numbers = {"h": gradient.h, "||grad_c h||": gradient.grad_norm}
    numbers["||c - c_org||"] = getattr(gradient, "distance", None)
    return _panel(title, gradient.replace(x0bar=gradient.x0bar[:SHOWN]), numbers)


def run_html(run) -> str:
    """A `Run`: the pictures as they stand over their prompts."""
    distance = run.history[-1].distance if len(run.history) else None
    return _panel(repr(run).strip("<>"), run, {"||c - c_org||": distance})


def _panel(title: str, shown, numbers: dict) -> str:
    """A title over pictures with their prompts, seeds and numbers, each (B,) or None."""
    cells = []
    for n, image in enumerate(shown.images[:SHOWN]):
        lines = [html.escape(shown.prompts[n]), f"seed {shown.seeds[n]}"]
        for name, values in numbers.items():
            if values is not None:
                lines.append(f"{name} = {values[n].item():.4g}")
        image.thumbnail((288, 288))
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
        data = base64.b64encode(buffer.getvalue()).decode()
        picture = f'<img src="data:image/png;base64,{data}" style="{IMAGE}" alt="{lines[0]}">'
        cells.append(f'<figure style="{FIGURE}">{picture}<br>{"<br>".join(lines)}</figure>')
    if len(shown.prompts) > SHOWN:
        cells.append(f"<div>... and {len(shown.prompts) - SHOWN} more</div>")
    return f"<div><div><b>{html.escape(title)}</b></div>{''.join(cells)}</div>"
