"""Figures of runs: how the reward goes, how the picture forms, what a radius does."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from .style import axes, band, line_in_words, look_of, pixels, tell, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..run import Run


def reward(
    *runs: Run,
    reward: Callable | None = None,
    labels: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """h of x0bar_hat against the step, a line a run: the mean over samples and their middle half.

    reward: by default the first of the runs' methods that has one. Triangles mark the updates.
    """
    own = (run.sampler.method.reward for run in runs)
    reward = reward or next((h for h in own if h is not None), None)
    lines, updated = {}, {}
    for name, run in zip(_names(runs, labels), runs, strict=True):
        h, steps = run.rewards(reward).cpu().numpy(), [info.i for info in run.history]
        lines[name] = steps, h.mean(1), *np.quantile(h, (0.25, 0.75), axis=1)
        updated[name] = run.history.updated
    ylabel = f"reward of x0bar\n({getattr(reward, 'name', 'h')})"
    return curves(lines, updated=updated, ylabel=ylabel, ax=ax)


def curves(
    lines: Mapping[str, Sequence[Sequence[float]]],
    *,
    updated: Mapping[str, Sequence[int]] | None = None,
    ylabel: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Values against the step, a line a name: (steps, values), or (steps, values, low, high).

    updated: by name, the steps that get a triangle.
    """
    ax = axes(ax, (5.2, 3.2))
    words = []
    for n, (name, (steps, values, *ends)) in enumerate(lines.items()):
        at = dict(zip(steps, np.asarray(values, float), strict=True))
        moved = [i for i in at if i in set((updated or {}).get(name, ()))]
        ax.plot(list(at), list(at.values()), label=name, **look_of(n))
        ax.plot(moved, [at[i] for i in moved], "^", color=look_of(n)["color"], markersize=4)
        if ends:
            band(ax, n, steps, *ends)
        words.append(line_in_words(name, list(at), list(at.values())))
        if moved:
            words.append(f"Updated in steps {', '.join(map(str, moved))}.")
    ax.set(xlabel="step (0 is the noisiest)", ylabel=ylabel)
    tell(ax, f"Lines of {' '.join(ylabel.split())} against the step. {' '.join(words)}")
    return tidy(ax, legend=True, whole_steps=True)


def filmstrip(
    *runs: Run,
    sample: int = 0,
    steps: Sequence[int] | int = 8,
    labels: Sequence[str] | None = None,
    difference: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """x0bar_hat of one sample as it forms: a row a run, a column a step; last what is finished.

    steps: which ones, or how many, evenly spread over those taken. difference: a last row shows
    how far the last run is from the first, the mean over colours, black where they differ most.
    """
    by_run = [{info.i: info for info in run.history} for run in runs]
    shared = sorted(set.intersection(*map(set, by_run)))
    if not shared:
        raise ValueError("these runs have taken no step in common; run.finish() them first")
    _check_samples([sample], runs)
    if isinstance(steps, int):
        places = np.linspace(0, len(shared) - 1, min(steps, len(shared))).round().astype(int)
        steps = [shared[place] for place in places]
    if missing := [i for i in steps if i not in shared]:
        raise ValueError(f"step {missing[0]} is none that these runs have taken: {shared}")
    rows, names, columns = [], _names(runs, labels), [f"step {i}" for i in steps]
    for infos in by_run:
        shown = [infos[i] for i in steps]
        rows.append([pixels(info.decode(info.x0bar_hat[sample : sample + 1])) for info in shown])
    if all(run.done for run in runs):
        columns.append("finished")
        for row, run in zip(rows, runs, strict=True):
            row.append(pixels(run.pixels[sample : sample + 1]))
    if difference:
        apart = [abs(b - a).mean(2) for a, b in zip(rows[0], rows[-1], strict=True)]
        most = max(map(np.max, apart)) or 1
        rows.append([np.repeat(1 - each[..., None] / most, 3, 2) for each in apart])
        names.append("difference")
    title = f"x0bar: {runs[0].prompts[sample]!r}, seed {runs[0].seeds[sample]}"
    return tiles(rows, columns=columns, rows_named=names, title=title, ax=ax)


def compare(
    *runs: Run,
    labels: Sequence[str] | None = None,
    samples: Sequence[int] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The pictures of runs of the same prompts and seeds: a row a run, a column a sample."""
    first, names = runs[0], _names(runs, labels)
    if any(run.prompts != first.prompts for run in runs):
        raise ValueError("these runs have other prompts, so their pictures make no columns")
    samples = range(len(first.prompts)) if samples is None else samples
    _check_samples(samples, runs)
    rows = [[pixels(image[None]) for image in run.pixels[list(samples)]] for run in runs]
    columns = [textwrap.fill(first.prompts[n], 17) for n in samples]
    return tiles(rows, columns=columns, rows_named=names, ax=ax)


def tiles(
    rows: Sequence[Sequence[np.ndarray]],
    *,
    columns: Sequence[str] = (),
    rows_named: Sequence[str] = (),
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """Pictures (H, W, 3) in a grid on one axes, named above the columns and before the rows."""
    height, width = rows[0][0].shape[:2]
    gap, down, across = max(2, width // 16), len(rows), len(rows[0])
    size = down * (height + gap) - gap, across * (width + gap) - gap
    canvas = np.ones((*size, 3), np.float32)
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            canvas[y * (height + gap) :, x * (width + gap) :][:height, :width] = picture
    ax = axes(ax, (1.15 * across + 1, 1.15 * down + 0.6))
    ax.imshow(canvas, interpolation="nearest" if width < 200 else "antialiased")
    x, y = np.arange(across) * (width + gap), np.arange(down) * (height + gap)
    names = {"parse_math": False}  # prompts may hold a $
    ax.set_xticks(x + width / 2, columns or [""] * across, fontsize=8, **names)
    ax.set_yticks(y + height / 2, rows_named or [""] * down, fontsize=9, **names)
    ax.set_title(title, fontsize=10)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    named = [", ".join(" ".join(name.split()) for name in names) for names in (rows_named, columns)]
    tell(ax, f"{down} x {across} pictures. Rows: {named[0]}. Columns: {named[1]}.")
    return ax


def _check_samples(samples: Sequence[int], runs: Sequence[Run]) -> None:
    """Raise ValueError for a sample that a run does not have."""
    count = min(len(run.prompts) for run in runs)
    if odd := [n for n in samples if not 0 <= n < count]:
        raise ValueError(f"there is no sample {odd[0]}: samples are 0 to {count - 1}")


def _names(runs, labels: Sequence[str] | None) -> list[str]:
    """The labels, or the methods' names; numbered where several runs share one."""
    names = list(labels or [type(run.sampler.method).__name__ for run in runs])
    if len(names) != len(runs):
        raise ValueError(f"{len(runs)} runs need as many labels, got {len(names)}")
    if len(set(names)) == len(names):
        return names
    return [f"{name} #{n}" for n, name in enumerate(names, 1)]
