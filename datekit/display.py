"""How runs and gradients show themselves in a notebook: pictures and numbers, not tensors."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

from PIL import Image

SHOWN = 6  # samples; more do not fit a line
FIGURE = "margin:0 8px 8px 0;display:inline-block;width:148px;vertical-align:top"


def gradient_html(gradient) -> str:
    """A `RewardGradient` or `StepInfo` as HTML.

    It shows x0bar of each sample over its reward, the norm of its gradient and, after an update,
    the distance of c from c_org.
    """
    title = f"{type(gradient).__name__}: step {gradient.i}, t = {gradient.t:g}"
    if getattr(gradient, "updated", False):
        title += ", embedding updated"
    numbers = {
        "h": gradient.h,
        "||grad_c h||": gradient.grad_norm,
        "||c - c_org||": getattr(gradient, "distance", None),
    }
    images = gradient.replace(x0bar=gradient.x0bar[:SHOWN]).images
    return _panel(title, images, gradient.prompts, gradient.seeds, numbers)


def run_html(run) -> str:
    """A `Run` as HTML: the pictures as they stand over their prompts."""
    state, steps = run.state, run.sampler.num_steps
    where = f"paused before step {state.i} of {steps}, t = {state.t:g}"
    title = f"Run: {'finished' if run.done else where}; {run.sampler.method!r}"
    distance = run.history[-1].distance if len(run.history) else None
    images = run.images[:SHOWN]
    return _panel(title, images, run.prompts, run.seeds, {"||c - c_org||": distance})


def _panel(
    title: str, images: Sequence, prompts: Sequence[str], seeds: Sequence[int], numbers: dict
) -> str:
    """A title over pictures with their prompts, seeds and numbers, each (B,) or None."""
    cells = []
    for n, image in enumerate(images):
        caption = f"{html.escape(prompts[n])}<br>seed {seeds[n]}"
        for name, values in numbers.items():
            if values is not None:
                caption += f"<br>{html.escape(name)} = {values[n].item():.4g}"
        alt = f"x0bar for: {html.escape(prompts[n])}, seed {seeds[n]}"
        cells.append(
            f'<figure style="{FIGURE}"><img src="{_data_url(image)}" alt="{alt}" '
            f'style="width:144px"><figcaption style="font-size:85%">{caption}</figcaption></figure>'
        )
    if len(prompts) > SHOWN:
        cells.append(f"<div>... and {len(prompts) - SHOWN} more</div>")
    return f"<div><div><b>{html.escape(title)}</b></div>{''.join(cells)}</div>"


def _data_url(image: Image.Image) -> str:
    if image.width < 144:
        size = (144, round(144 * image.height / image.width))
        image = image.resize(size, Image.Resampling.NEAREST)
    image.thumbnail((288, 288))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
