"""Figures of runs: how the reward goes, how the picture forms, what a radius does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .style import COLOURS, STYLES, axes, line_in_words, pixels, tell, tidy, wrapped


def reward(*runs, reward=None, labels: Sequence[str] | None = None, ax=None):
    """h of x0bar_hat against the step, one line a run: the mean over samples and the middle half of them.

    reward: the first one found among the runs' methods by default; triangles mark the updates.
    """
    reward = reward or next(
        (run.sampler.method.reward for run in runs if run.sampler.method.reward is not None), None
    )
    if reward is None:
        raise ValueError(
            "none of these runs has a reward of its own; say which: plot.reward(..., reward=...)"
        )
    rows = [(run.rewards(reward).cpu().numpy(), [info.i for info in run.history]) for run in runs]
    names = _names(runs, labels)
    updated = {name: run.history.updated for name, run in zip(names, runs, strict=True)}
    lines = {name: (steps, h.mean(1)) for name, (h, steps) in zip(names, rows, strict=True)}
    ax = curves(
        lines, updated=updated, ylabel=f"reward of x0bar\n({getattr(reward, 'name', 'h')})", ax=ax
    )
    for n, (h, steps) in enumerate(rows):
        if h.shape[1] > 1:
            ax.fill_between(
                steps,
                *np.quantile(h, (0.25, 0.75), axis=1),
                color=COLOURS[n % 6],
                alpha=0.15,
                linewidth=0,
            )
    return ax


def curves(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    updated: Mapping[str, Sequence[int]] | None = None,
    ylabel: str = "",
    xlabel: str = "step (0 is the noisiest)",
    ax=None,
):
    """Values against the step, (steps, values) a line by name; triangles mark the steps that `updated` names for a line."""
    ax = axes(ax, (5.2, 3.2))
    for n, (name, (steps, values)) in enumerate(lines.items()):
        steps, values = list(steps), np.asarray(values, float)
        ax.plot(steps, values, color=COLOURS[n % 6], linestyle=STYLES[n % 6], label=name)
        moved = [row for row, i in enumerate(steps) if i in set((updated or {}).get(name, ()))]
        ax.plot(
            [steps[row] for row in moved], values[moved], "^", color=COLOURS[n % 6], markersize=4
        )
    ax.set(xlabel=xlabel, ylabel=ylabel)
    words = [line_in_words(name, *line) + _moved(name, updated) for name, line in lines.items()]
    tell(ax, f"Lines of {' '.join(ylabel.split())} against {xlabel}. {' '.join(words)}")
    return tidy(ax, legend=True, whole_steps=True)


def filmstrip(
    *runs,
    sample: int = 0,
    steps: Sequence[int] | int = 8,
    labels: Sequence[str] | None = None,
    ax=None,
):
    """x0bar_hat of one sample as it forms: a row a run, a column a step.

    steps: which steps, or how many, evenly spread over those taken.
    """
    taken = [{info.i: info for info in run.history} for run in runs]
    shared = sorted(set.intersection(*map(set, taken)))
    if not shared:
        raise ValueError(
            "these runs have taken no step in common yet; run.step() or run.finish() first"
        )
    chosen = steps
    if isinstance(steps, int):
        chosen = [
            shared[n]
            for n in np.linspace(0, len(shared) - 1, min(steps, len(shared))).round().astype(int)
        ]
    if missing := [i for i in chosen if i not in shared]:
        raise ValueError(
            f"step(s) {missing} are not among those that were taken, {shared[0]} to {shared[-1]}"
        )
    rows = [
        [pixels(infos[i].decode(infos[i].x0bar_hat[sample : sample + 1])) for i in chosen]
        for infos in taken
    ]
    ax = tiles(rows, ax=ax, columns=[f"step {i}" for i in chosen], rows_named=_names(runs, labels))
    title = f"x0bar: {runs[0].prompts[sample]!r}, seed {runs[0].seeds[sample]}"
    ax.set_title(title, fontsize=10)
    tell(
        ax,
        f"{title}, at steps {', '.join(map(str, chosen))}: a row each for {', '.join(_names(runs, labels))}.",
    )
    return ax


def compare(
    *runs, labels: Sequence[str] | None = None, samples: Sequence[int] | None = None, ax=None
):
    """The pictures of several runs of the same prompts and seeds: a row a run, a column a sample."""
    samples = range(len(runs[0].prompts)) if samples is None else samples
    pictures = [run.pixels for run in runs]
    rows = [[pixels(images[n : n + 1]) for n in samples] for images in pictures]
    ax = tiles(
        rows,
        ax=ax,
        columns=[wrapped(runs[0].prompts[n]) for n in samples],
        rows_named=_names(runs, labels),
    )
    asked = "; ".join(f"{runs[0].prompts[n]!r}, seed {runs[0].seeds[n]}" for n in samples)
    tell(ax, f"Pictures of {', '.join(_names(runs, labels))}, a row each, for: {asked}.")
    return ax


def tiles(
    rows: Sequence[Sequence[np.ndarray]],
    *,
    columns: Sequence[str] = (),
    rows_named: Sequence[str] = (),
    ax=None,
):
    """Pictures (H, W, 3) in a grid on one axes, with names above the columns and before the rows."""
    height, width = rows[0][0].shape[:2]
    gap = max(2, width // 16)
    canvas = np.ones(
        (len(rows) * (height + gap) - gap, len(rows[0]) * (width + gap) - gap, 3), np.float32
    )
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            canvas[y * (height + gap) :, x * (width + gap) :][:height, :width] = picture
    ax = axes(ax, (1.15 * len(rows[0]) + 1, 1.15 * len(rows) + 0.6))
    ax.imshow(canvas, interpolation="nearest" if width < 200 else "antialiased")
    centres = lambda n, size: [k * (size + gap) + size / 2 for k in range(n)]
    ax.set_xticks(centres(len(rows[0]), width), columns or [""] * len(rows[0]), fontsize=8)
    ax.set_yticks(centres(len(rows), height), rows_named or [""] * len(rows), fontsize=9)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    tell(
        ax,
        f"{len(rows)} x {len(rows[0])} pictures; rows: {_listed(rows_named)}; columns: {_listed(columns)}.",
    )
    return ax


def rho_sweep(found, *, sample: int = 0, ax=None):
    """x0bar of one sample at each radius (`widgets.rho_sweep`), with its reward and what the first order predicts."""
    numbers = list(
        zip(
            found.rhos.tolist(),
            found.h[:, sample].tolist(),
            found.predicted[:, sample].tolist(),
            strict=True,
        )
    )
    columns = [f"rho {rho:.3g}\nh {h:.3f}\n1st order {first:.3f}" for rho, h, first in numbers]
    ax = tiles(
        [[pixels(images[sample : sample + 1]) for images in found.images]], columns=columns, ax=ax
    )
    title = f"x0bar at step {found.i}: {found.prompts[sample]!r}, h without an update {found.h0[sample]:.3f}"
    ax.set_title(title, fontsize=9)
    tell(
        ax,
        f"{title}. "
        + " ".join(
            f"rho {rho:.3g}: h {h:.3f}, first order {first:.3f}." for rho, h, first in numbers
        ),
    )
    return ax


def rho_curve(found, *, sample: int = 0, ax=None):
    """The reward against the radius (`widgets.rho_sweep`) beside its first-order prediction h + rho ||grad_c h||."""
    ax = axes(ax, (4.6, 3.2))
    rhos, h, first = (
        found.rhos.numpy(),
        found.h[:, sample].numpy(),
        found.predicted[:, sample].numpy(),
    )
    ax.plot(
        rhos, h, marker="o", markersize=4, color=COLOURS[0], linestyle=STYLES[0], label="measured"
    )
    ax.plot(rhos, first, color=COLOURS[1], linestyle=STYLES[1], label="first order")
    ax.axhline(found.h0[sample].item(), color="0.6", linewidth=0.8, label="no update")
    ax.set_xscale("log", base=2)
    room = (
        0.25 * (np.ptp(h) + abs(h - found.h0[sample].item()).max()) + 1e-6
    )  # the prediction may leave the range by far
    ax.set_ylim(
        min(h.min(), found.h0[sample].item()) - room, max(h.max(), found.h0[sample].item()) + room
    )
    ax.set(xlabel="rho", ylabel="h of x0bar", title=f"step {found.i}")
    tell(
        ax,
        f"Reward against rho at step {found.i}. {line_in_words('measured', rhos, h)} {line_in_words('first order', rhos, first)}",
    )
    return tidy(ax, legend=True)


def _names(runs, labels: Sequence[str] | None) -> list[str]:
    names = list(labels or [type(run.sampler.method).__name__ for run in runs])
    return [
        name if names.count(name) == 1 else f"{name} #{names[: n + 1].count(name)}"
        for n, name in enumerate(names)
    ]


def _moved(name: str, updated: Mapping[str, Sequence[int]] | None) -> str:
    steps = list((updated or {}).get(name, ()))
    return f" Updated in steps {', '.join(map(str, steps))}." if steps else ""


def _listed(names: Sequence[str]) -> str:
    return ", ".join(" ".join(str(name).split()) for name in names) or "without names"
