"""Figures of what the instruments of `datekit.analysis` and the comparisons of `datekit.evaluation` found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .runs import tiles
from .style import (
    COLOURS,
    MARKERS,
    STYLES,
    axes,
    enlarged,
    grown,
    line_in_words,
    pixels,
    tell,
    tidy,
    wrapped,
)

PALE = "#B8CFDC"  # what is there but not meant: padding, start and end


def cosines(found, *, ax=None):
    """Cosines of eps_hat between timesteps (`analysis.directions`), averaged over samples, as a heat map."""
    ax = axes(ax, (4.2, 3.6))
    matrix = found.matrix.numpy()
    image = ax.imshow(matrix, vmin=-1, vmax=1, cmap="PuOr_r", origin="lower")
    shown = np.linspace(0, len(found.steps) - 1, min(6, len(found.steps))).round().astype(int)
    ax.set_xticks(shown, [found.steps[n] for n in shown])
    ax.set_yticks(shown, [found.steps[n] for n in shown])
    ax.set(xlabel="step", ylabel="step", title="cosine of eps_hat between steps")
    ax.figure.colorbar(image, ax=ax, shrink=0.8)
    apart = [
        (k, np.diagonal(matrix, k).mean())
        for k in (1, len(matrix) // 2, len(matrix) - 1)
        if 0 < k < len(matrix)
    ]
    tell(
        ax,
        f"Heat map of the cosine of eps_hat between {len(matrix)} steps. "
        + " ".join(f"{k} apart: {value:.2f} on average." for k, value in dict(apart).items()),
    )
    return ax


def agreement(found, *, ax=None):
    """Mean cosine of eps_hat between samples at each step (`analysis.directions`), over the band where 95 % of random ones lie."""
    ax = axes(ax, (5.2, 3.2))
    shown = {name: values.numpy() for name, values in found.by_step.items()}
    for n, (name, values) in enumerate(shown.items()):
        if np.isfinite(values).any():
            ax.plot(found.steps, values, color=COLOURS[n], linestyle=STYLES[n], label=name)
    band = 1.96 * found.dimension**-0.5
    ax.axhspan(-band, band, color="0.85", label="random directions, 95 %")
    ax.set(xlabel="step (0 is the noisiest)", ylabel="cosine of eps_hat", ylim=(-0.25, 1.02))
    tell(
        ax,
        "Cosine of eps_hat between samples against the step. "
        + " ".join(line_in_words(k, found.steps, v) for k, v in shown.items())
        + f" Random directions lie within {band:.3f}.",
    )
    return tidy(ax, legend=True, whole_steps=True, fontsize=8)


def tokens(shares, *, sample: int = 0, ax=None):
    """Each token's share of the gradient of one sample (`analysis.token_shares`); padding and special tokens are pale."""
    words, share = shares.tokens[sample], shares.share[sample].numpy()
    ax = axes(ax, (0.42 * len(words) + 1.2, 2.8))
    pale = [word.startswith("<") and word.endswith(">") for word in words]
    ax.bar(range(len(words)), share, color=[PALE if p else COLOURS[0] for p in pale])
    ax.set_xticks(range(len(words)), words, rotation=60, ha="right")
    ax.set(ylabel="share of ||grad_c h||^2", title=f"{shares.prompts[sample]!r}, step {shares.i}")
    largest = np.argsort(share)[::-1][:5]
    tell(
        ax,
        f"Bars: each token's share of the squared gradient, {shares.prompts[sample]!r}, step {shares.i}. Largest: "
        + ", ".join(f"{words[n]} {share[n]:.0%}" for n in largest)
        + ".",
    )
    return tidy(ax)


def guidance(*terms, sample: int = 0, ax=None):
    """What an update does in x (`analysis.guidance_term`), a column a term: x0bar, its change enlarged (grey is none), size of the term."""
    import torch

    pick = slice(sample, sample + 1)
    seen, changed, sizes = [], [], []
    for term in terms:
        with torch.no_grad():
            before, after = (
                term.decode(term.x0bar[pick]),
                term.decode((term.x0bar + term.shift)[pick]),
            )
        seen.append(pixels(before))
        changed.append(enlarged(after - before))
        sizes.append(grown(term.term[pick].double().square().mean(1, keepdim=True).sqrt(), before))
    names = ["x0bar", "its change,\nenlarged", "size of\nthe term"]
    ax = tiles(
        [seen, changed, sizes],
        ax=ax,
        columns=[f"step {term.i}" for term in terms],
        rows_named=names,
    )
    rho = terms[0].rho  # None for a method that moves no embedding
    title = f"{terms[0].prompts[sample]!r}" + ("" if rho is None else f", rho = {rho:g}")
    ax.set_title(title, fontsize=10)
    lengths = ", ".join(
        f"{term.term[pick].double().norm().item():.3g} at step {term.i}" for term in terms
    )
    tell(
        ax,
        f"{title}: x0bar, its change by one update, and where the guidance term acts. Length of the term: {lengths}.",
    )
    return ax


def slopes(error, *, sample: int = 0, ax=None):
    """Errors of both first-order expansions against rho (`analysis.taylor_error`), over the line that a second-order error follows."""
    ax = axes(ax, (4.8, 3.4))
    rhos = error.rhos.numpy()
    rows = {
        "score": (error.score_error, error.score_slope),
        "reward": (error.reward_error, error.reward_slope),
    }
    for n, (name, (values, slope)) in enumerate(rows.items()):
        label = f"{name}: slope {slope[sample]:.2f}"
        ax.loglog(
            rhos,
            values[:, sample].numpy(),
            marker="o",
            color=COLOURS[n],
            linestyle=STYLES[n],
            markersize=3.5,
            label=label,
        )
        ax.loglog(
            rhos,
            values[-1, sample].item() * (rhos / rhos[-1]) ** 2,
            color="0.6",
            linewidth=0.8,
            zorder=0,
        )
    ax.set(
        xlabel="rho",
        ylabel="error of the first order",
        title=f"{error.kind} reading, step {error.i}",
    )
    ax.tick_params(axis="x", which="minor", labelbottom=False)
    tell(
        ax,
        f"Error of the first-order expansions against rho, both axes logarithmic, {error.kind} reading, step {error.i}. Slopes: "
        + ", ".join(f"{name} {slope[sample]:.2f}" for name, (_, slope) in rows.items())
        + ".",
    )
    return tidy(
        ax, legend=True, title="grey: slope 2", loc="lower right", fontsize=8, title_fontsize=8
    )


def stability(found, *, ax=None):
    """The stable share of grad_c h against the step (`analysis.signal_to_noise`), a line a reward, with its 95 % intervals."""
    ax = axes(ax, (5.2, 3.2))
    words = []
    for n, name in enumerate(found.rewards):
        spans = np.array([found.interval(n, row) for row in range(len(found.steps))])
        ax.plot(
            found.steps,
            spans[:, 0],
            marker=MARKERS[n % len(MARKERS)],
            color=COLOURS[n % 6],
            linestyle=STYLES[n % 6],
            markersize=4,
            label=name,
        )
        ax.fill_between(
            found.steps, spans[:, 1], spans[:, 2], color=COLOURS[n % 6], alpha=0.15, linewidth=0
        )
        words.append(line_in_words(name, found.steps, spans[:, 0]))
    ax.set(xlabel="step (0 is the noisiest)", ylabel="stable share of grad_c h", ylim=(0, 1.03))
    tell(ax, "Stable share of the gradient against the step. " + " ".join(words))
    return tidy(ax, legend=True, whole_steps=True)


def chain(found, *, samples: Sequence[int] | None = None, ax=None):
    """x0bar over what the reward wants changed in it (`analysis.chain_rule`): the push enlarged (grey is none), and where it acts."""
    samples = range(len(found.prompts)) if samples is None else samples
    rows = [[], [], []]
    for n in samples:
        push = found.push[n : n + 1]
        rows[0].append(pixels(found.image[n : n + 1]))
        rows[1].append(enlarged(push))
        rows[2].append(grown(found.map[n : n + 1, None], push))
    ax = tiles(
        rows,
        ax=ax,
        columns=[wrapped(found.prompts[n]) for n in samples],
        rows_named=["x0bar", "push along\ngrad_x0bar h", "size of\ngrad_x0bar h"],
    )
    tell(
        ax,
        f"x0bar at step {found.i}, the push that the reward wishes, and where: {'; '.join(found.prompts[n] for n in samples)}.",
    )
    return ax


def quality(
    rows: Mapping[str, Mapping],
    *,
    measure: str = "heldout",
    cost: str = "seconds a picture",
    ax=None,
):
    """Quality against time, a point a method: up and to the left is better.

    rows: by name, {cost: number, measure: number or (mean, low, high)}, as the "rows" of a file of `datekit compare` are.
    """
    ax = axes(ax, (6.4, 3.4))
    words = []
    for n, (name, row) in enumerate(rows.items()):
        mean, low, high = (
            row[measure] if isinstance(row[measure], Sequence) else (row[measure],) * 3
        )
        ax.errorbar(
            row[cost],
            mean,
            yerr=[[mean - low], [high - mean]],
            marker=MARKERS[n % len(MARKERS)],
            color=COLOURS[n % 6],
            markersize=6,
            capsize=2,
            linewidth=0.8,
            linestyle="none",
            label=name,
        )
        words.append(f"{name}: {mean:.3g} [{low:.3g}, {high:.3g}] at {row[cost]:.3g}.")
    ax.set(xlabel=cost, ylabel=measure)
    ax.set_xlim(left=0)
    tell(ax, f"{measure} against {cost}. {' '.join(words)}")
    return tidy(ax, legend=True, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))


def trade_off(
    points: Sequence[Mapping],
    *,
    along: str = "skip",
    x: str = "background",
    y: str = "heldout",
    ax=None,
):
    """What an edit costs against what it gains, a line a radius, with 95 % intervals both ways; markers shrink as `along` grows.

    points: {along: number, "rho": number, x and y: (mean, low, high)} each, as the "curves" of a file of `datekit compare-edits` are, by
    editor and what they go along, "skip" or "guidance"; rho 0 is the fixed embedding.
    """
    ax = axes(ax, (5.2, 3.6))
    words, values = [], sorted({point[along] for point in points}, reverse=True)
    for n, rho in enumerate(sorted({point["rho"] for point in points})):
        line = sorted(
            (point for point in points if point["rho"] == rho), key=lambda point: point[along]
        )
        (xs, x_off), (ys, y_off) = (_means([point[name] for point in line]) for name in (x, y))
        name, colour = f"DATE, rho {rho:.3g}" if rho else "fixed", COLOURS[n % 6]
        ax.errorbar(
            xs,
            ys,
            xerr=x_off,
            yerr=y_off,
            color=colour,
            linestyle=STYLES[n % 6],
            linewidth=1,
            elinewidth=0.6,
            label=name,
        )
        ax.scatter(
            xs,
            ys,
            [14 + 22 * values.index(point[along]) for point in line],
            color=colour,
            marker=MARKERS[n % len(MARKERS)],
            zorder=3,
        )
        told = (
            f"{along} {point[along]:g} at ({a:.3g}, {b:.3g})"
            for point, a, b in zip(line, xs, ys, strict=True)
        )
        words.append(f"{name}: {', '.join(told)}.")
    ax.set(xlabel=x, ylabel=y)
    tell(ax, f"{y} against {x} along {along}. {' '.join(words)}")
    return tidy(ax, legend=True, fontsize=8)


def _means(rows: Sequence[Sequence[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Means and how far the ends of their intervals lie below and above, (N,) and (2, N)."""
    mean, low, high = np.asarray(rows, float).T
    return mean, np.stack([mean - low, high - mean])
