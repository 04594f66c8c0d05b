"""How runs and looks show themselves in a notebook: pictures and numbers, not a wall of tensors."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence

_SHOWN = 6  # samples; more do not fit a line


def look_html(look) -> str:
    """A `RewardGradient` or `StepInfo`: x0bar of each sample over its reward, gradient norm and distance from c_org."""
    title = f"step {look.i}, t = {look.t:g}" + (
        ", embedding updated" if getattr(look, "updated", False) else ""
    )
    rows = {
        "h": look.h,
        "||grad_c h||": look.grad_norm,
        "||c - c_org||": getattr(look, "distance", None),
    }
    return _panel(
        f"{type(look).__name__}: {title}",
        look.replace(x0bar=look.x0bar[:_SHOWN]).images,
        look.prompts,
        look.seeds,
        rows,
    )


def run_html(run) -> str:
    """A `Run`: the pictures as they stand over their prompts."""
    state = run.state
    where = (
        "finished"
        if run.done
        else f"paused before step {state.i} of {run.sampler.num_steps}, t = {state.t:g}"
    )
    latest = run.history[-1] if len(run.history) else None
    rows = {"||c - c_org||": None if latest is None else latest.distance}
    return _panel(
        f"Run: {where}; {run.sampler.method!r}", run.images[:_SHOWN], run.prompts, run.seeds, rows
    )


def _panel(
    title: str, images: Sequence, prompts: Sequence[str], seeds: Sequence[int], rows: dict
) -> str:
    cells = []
    for n, image in enumerate(images):
        numbers = "".join(
            f"<br>{html.escape(k)} = {values[n].item():.4g}"
            for k, values in rows.items()
            if values is not None
        )
        caption = html.escape(prompts[n])
        cells.append(
            f'<figure style="margin:0 8px 8px 0;display:inline-block;width:148px;vertical-align:top">'
            f'<img src="{_data_url(image)}" alt="x0bar for: {caption}, seed {seeds[n]}" style="width:144px">'
            f'<figcaption style="font-size:85%">{caption}<br>seed {seeds[n]}{numbers}</figcaption></figure>'
        )
    rest = f"<div>... and {len(prompts) - _SHOWN} more</div>" if len(prompts) > _SHOWN else ""
    return f"<div><div><b>{html.escape(title)}</b></div>{''.join(cells)}{rest}</div>"


def _data_url(image) -> str:
    from PIL import Image

    if image.width < 144:
        image = image.resize(
            (144, round(144 * image.height / image.width)), Image.Resampling.NEAREST
        )
    image.thumbnail((288, 288))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
