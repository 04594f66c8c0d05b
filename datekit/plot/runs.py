"""Figures of runs: how the reward goes, how the picture forms, what a radius does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .style import axes, band, line, look_of, pixels, tell, tidy, wrapped


def reward(*runs, reward=None, labels: Sequence[str] | None = None, ax=None):
    """h of x0bar_hat against the step, a line a run: the mean over samples and their middle half.

    reward: by default the first of the runs' methods that has one. Triangles mark the updates.
    """
    own = (run.sampler.method.reward for run in runs)
    reward = reward or next((h for h in own if h is not None), None)
    if reward is None:
        raise ValueError("none of these runs has a reward of its own; say which: reward=...")
    lines, updated, spreads = {}, {}, []
    for name, run in zip(_names(runs, labels), runs, strict=True):
        h, steps = run.rewards(reward).cpu().numpy(), [info.i for info in run.history]
        lines[name], updated[name] = (steps, h.mean(1)), run.history.updated
        spreads.append((steps, *np.quantile(h, (0.25, 0.75), axis=1)))
    ylabel = f"reward of x0bar\n({getattr(reward, 'name', 'h')})"
    ax = curves(lines, updated=updated, ylabel=ylabel, ax=ax)
    for n, spread in enumerate(spreads):
        band(ax, n, *spread)
    return ax


def curves(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    updated: Mapping[str, Sequence[int]] | None = None,
    ylabel: str = "",
    ax=None,
):
    """Values against the step, a line a name: (steps, values).

    updated: by name, the steps that get a triangle.
    """
    ax = axes(ax, (5.2, 3.2))
    words = []
    for n, (name, (steps, values)) in enumerate(lines.items()):
        at = dict(zip(steps, np.asarray(values, float), strict=True))
        moved = [i for i in at if i in set((updated or {}).get(name, ()))]
        words.append(line(ax, n, name, list(at), list(at.values())))
        ax.plot(moved, [at[i] for i in moved], "^", color=look_of(n)["color"], markersize=4)
        if moved:
            words.append(f"Updated in steps {', '.join(map(str, moved))}.")
    ax.set(xlabel="step (0 is the noisiest)", ylabel=ylabel)
    tell(ax, f"Lines of {' '.join(ylabel.split())} against the step. {' '.join(words)}")
    return tidy(ax, legend=True, whole_steps=True)


def filmstrip(
    *runs,
    sample: int = 0,
    steps: Sequence[int] | int = 8,
    labels: Sequence[str] | None = None,
    ax=None,
):
    """x0bar_hat of one sample as it forms: a row a run, a column a step.

    steps: which ones, or how many, evenly spread over those taken.
    """
    by_run = [{info.i: info for info in run.history} for run in runs]
    shared = sorted(set.intersection(*map(set, by_run)))
    if not shared:
        raise ValueError("these runs have taken no step in common; run.finish() them first")
    if isinstance(steps, int):
        places = np.linspace(0, len(shared) - 1, min(steps, len(shared))).round().astype(int)
        steps = [shared[place] for place in places]
    if not set(steps) <= set(shared):
        taken = f"{shared[0]} to {shared[-1]}"
        raise ValueError(
            f"some of steps {list(steps)} are not among those that were taken, {taken}"
        )
    rows, names = [], _names(runs, labels)
    for infos in by_run:
        shown = [infos[i] for i in steps]
        rows.append([pixels(info.decode(info.x0bar_hat[sample : sample + 1])) for info in shown])
    ax = tiles(rows, ax=ax, columns=[f"step {i}" for i in steps], rows_named=names)
    title = f"x0bar: {runs[0].prompts[sample]!r}, seed {runs[0].seeds[sample]}"
    ax.set_title(title, fontsize=10)
    at = ", ".join(map(str, steps))
    tell(ax, f"{title}, at steps {at}: a row each for {', '.join(names)}.")
    return ax


def compare(
    *runs, labels: Sequence[str] | None = None, samples: Sequence[int] | None = None, ax=None
):
    """The pictures of runs of the same prompts and seeds: a row a run, a column a sample."""
    first, names = runs[0], _names(runs, labels)
    samples = range(len(first.prompts)) if samples is None else samples
    rows = [[pixels(image[None]) for image in run.pixels[list(samples)]] for run in runs]
    columns = [wrapped(first.prompts[n]) for n in samples]
    ax = tiles(rows, ax=ax, columns=columns, rows_named=names)
    asked = "; ".join(f"{first.prompts[n]!r}, seed {first.seeds[n]}" for n in samples)
    tell(ax, f"Pictures of {', '.join(names)}, a row each, for: {asked}.")
    return ax


def tiles(
    rows: Sequence[Sequence[np.ndarray]],
    *,
    columns: Sequence[str] = (),
    rows_named: Sequence[str] = (),
    ax=None,
):
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
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    words = f"rows: {_listed(rows_named)}; columns: {_listed(columns)}."
    tell(ax, f"{down} x {across} pictures; {words}")
    return ax


def rho_sweep(sweep, *, sample: int = 0, ax=None):
    """x0bar of one sample at each radius (`analysis.rho_sweep`), over its reward and prediction."""
    columns, words = [], []
    for rho, h, first in zip(sweep.rhos, sweep.h, sweep.predicted, strict=True):
        columns.append(f"rho {rho:.3g}\nh {h[sample]:.3f}\n1st order {first[sample]:.3f}")
        words.append(f"rho {rho:.3g}: h {h[sample]:.3f}, first order {first[sample]:.3f}.")
    row = [pixels(images[sample : sample + 1]) for images in sweep.images]
    ax = tiles([row], columns=columns, ax=ax)
    h0 = f"h without an update {sweep.h0[sample]:.3f}"
    title = f"x0bar at step {sweep.i}: {sweep.prompts[sample]!r}, {h0}"
    ax.set_title(title, fontsize=9)
    tell(ax, f"{title}. {' '.join(words)}")
    return ax


def rho_curve(sweep, *, sample: int = 0, ax=None):
    """The reward against the radius (`analysis.rho_sweep`), measured and to first order."""
    ax = axes(ax, (4.6, 3.2))
    rhos, h = sweep.rhos.numpy(), sweep.h[:, sample].numpy()
    first, h0 = sweep.predicted[:, sample].numpy(), sweep.h0[sample].item()
    words = line(ax, 0, "measured", rhos, h, marker=True), line(ax, 1, "first order", rhos, first)
    ax.axhline(h0, color="0.6", linewidth=0.8, label="no update")
    ax.set_xscale("log", base=2)
    # the prediction may leave the range by far
    room = 0.25 * (np.ptp(h) + abs(h - h0).max()) + 1e-6
    ax.set_ylim(min(h.min(), h0) - room, max(h.max(), h0) + room)
    ax.set(xlabel="rho", ylabel="h of x0bar", title=f"step {sweep.i}")
    tell(ax, f"Reward against rho at step {sweep.i}. {' '.join(words)}")
    return tidy(ax, legend=True)


def _names(runs, labels: Sequence[str] | None) -> list[str]:
    """The labels, or the methods' names, numbered where several runs share one."""
    names = list(labels or [type(run.sampler.method).__name__ for run in runs])
    numbered = []
    for n, name in enumerate(names):
        alone = names.count(name) == 1
        numbered.append(name if alone else f"{name} #{names[: n + 1].count(name)}")
    return numbered


def _listed(names: Sequence[str]) -> str:
    return ", ".join(" ".join(str(name).split()) for name in names) or "without names"
