"""Figures of what the instruments of `datekit.analysis` measured."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.functional import interpolate

from .runs import tiles
from .style import COLOURS, PALE, axes, look_of, pixels, tell, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ..analysis import ChainRule, Directions, GuidanceTerm, TaylorError, TokenShares
    from ..types import StepInfo


def cosines(directions: Directions, *, ax: Axes | None = None) -> Axes:
    """A heat map of the cosines of eps_hat between timesteps (`analysis.directions`)."""
    ax = axes(ax, (4.2, 3.6))
    matrix, steps = directions.matrix.numpy(), directions.steps
    image = ax.imshow(matrix, vmin=-1, vmax=1, cmap="PuOr_r", origin="lower")
    shown = np.linspace(0, len(steps) - 1, min(6, len(steps))).round().astype(int)
    labels = [steps[n] for n in shown]
    ax.set_xticks(shown, labels)
    ax.set_yticks(shown, labels)
    ax.set(xlabel="step", ylabel="step", title="cosine of eps_hat between steps")
    ax.figure.colorbar(image, ax=ax, shrink=0.8)
    near = f"{np.diagonal(matrix, 1).mean():.2f} between neighbours"
    tell(ax, f"Heat map of the cosine of eps_hat between {len(steps)} steps, on average {near}.")
    return ax


def tokens(shares: TokenShares, *, sample: int = 0, ax: Axes | None = None) -> Axes:
    """Each token's share of one sample's gradient (`analysis.token_shares`); special ones pale."""
    words, share = shares.tokens[sample], shares.share[sample].numpy()
    ax = axes(ax, (0.42 * len(words) + 1.2, 2.8))
    special = [word.startswith("<") and word.endswith(">") for word in words]
    ax.bar(range(len(words)), share, color=[PALE if pale else COLOURS[0] for pale in special])
    ax.set_xticks(range(len(words)), words, rotation=60, ha="right", parse_math=False)
    where = f"{shares.prompts[sample]!r}, step {shares.i}"
    ax.set(ylabel="share of ||grad_c h||^2", title=where)
    largest = ", ".join(f"{words[n]} {share[n]:.0%}" for n in np.argsort(share)[::-1][:5])
    tell(ax, f"Bars: each token's share of the squared gradient, {where}. Largest: {largest}.")
    return tidy(ax)


def guidance(*terms: GuidanceTerm, sample: int = 0, ax: Axes | None = None) -> Axes:
    """What an update does in x (`analysis.guidance_term`), a column a term.

    The rows are x0bar, its change enlarged (grey is none), and the size of the term.
    """
    pick = slice(sample, sample + 1)
    columns, above = [], []
    for term in terms:
        with torch.no_grad():
            before = term.decode(term.x0bar[pick])
            after = term.decode((term.x0bar + term.shift)[pick])
        size = term.term[pick].cpu().double().square().mean(1).sqrt()
        columns.append(_column(before, after - before, size))
        above.append(f"step {term.i}\nlength {term.term[pick].cpu().double().norm().item():.3g}")
    names = ["x0bar", "its change,\nenlarged", "size of\nthe term"]
    title = f"{terms[0].prompts[sample]!r}, rho = {terms[0].rho:g}"
    rows = list(zip(*columns, strict=True))
    return tiles(rows, columns=above, rows_named=names, title=title, ax=ax)


def slopes(error: TaylorError, *, sample: int = 0, ax: Axes | None = None) -> Axes:
    """Errors of both first-order expansions against rho (`analysis.taylor_error`).

    The grey lines are those of a second-order error.
    """
    ax = axes(ax, (4.8, 3.4))
    rhos = error.rhos.numpy()
    rows = {
        "score": (error.score_error, error.score_slope),
        "reward": (error.reward_error, error.reward_slope),
    }
    for n, (name, (values, slope)) in enumerate(rows.items()):
        column = values[:, sample].numpy()
        label = f"{name}: slope {slope[sample]:.2f}"
        ax.loglog(rhos, column, label=label, **look_of(n), marker="o", markersize=3.5)
        ax.loglog(rhos, column[-1] * (rhos / rhos[-1]) ** 2, color="0.6", linewidth=0.8, zorder=0)
    title = f"{error.kind} reading, step {error.i}"
    ax.set(xlabel="rho", ylabel="error of the first order", title=title)
    ax.tick_params(axis="x", which="minor", labelbottom=False)
    if rhos[-1] < 100 * rhos[0]:  # powers of ten alone would hardly label the axis
        ax.xaxis.get_major_locator().set_params(subs=(1, 2.5, 5))
        ax.xaxis.set_major_formatter("{x:g}")
    small = {"fontsize": 8, "title_fontsize": 8}
    return tidy(ax, legend=True, title="grey: slope 2", loc="lower right", **small)


def chain(rule: ChainRule, *, samples: Sequence[int] | None = None, ax: Axes | None = None) -> Axes:
    """x0bar over what the reward wants changed in it (`analysis.chain_rule`), a column a sample.

    Below x0bar stand the push, enlarged (grey is none), and where it acts.
    """
    samples = range(len(rule.prompts)) if samples is None else samples
    columns = [_column(rule.image[[n]], rule.push[[n]], rule.map[[n]]) for n in samples]
    names = ["x0bar", "push along\ngrad_x0bar h", "size of\ngrad_x0bar h"]
    above = [textwrap.fill(rule.prompts[n], 17) for n in samples]
    rows = list(zip(*columns, strict=True))
    return tiles(rows, columns=above, rows_named=names, title=f"step {rule.i}", ax=ax)


def _column(image, change, size) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A picture, its change enlarged to 1/2 around grey, and a map of sizes, (H, W, 3) each.

    image, change: (1, 3, H, W). size: (1, h, w).
    """
    enlarged = 0.5 + 0.5 * change / change.abs().max().clamp_min(1e-30)
    scaled = (size / size.max().clamp_min(1e-30))[None]
    shown = interpolate(scaled, image.shape[-2:], mode="nearest").expand(-1, 3, -1, -1)
    return pixels(image), pixels(enlarged), pixels(shown)


def diagram(info: StepInfo | None = None, *, sample: int = 0, ax: Axes | None = None) -> Axes:
    """The way of an update, prompt -> c -> x0bar -> h -> grad_c h -> c_hat, with names in code.

    info: of an updated step, whose numbers and x0bar are then shown for one sample.
    """
    if info is not None and info.h is None:
        raise ValueError(f"step {info.i} has no reward to show: take a step that updates")
    boxes = [
        ("prompt", "the text", "info.prompts", lambda: textwrap.fill(info.prompts[sample], 15)),
        ("$c$", "its embedding", "info.at", lambda: f"norm {info.at[sample].norm():.1f}"),
        ("$\\bar x_0$", "the picture expected\nat this step", "info.x0bar", lambda: ""),
        ("$h$", "its reward", "info.h", lambda: f"{info.h[sample]:.3f}"),
        ("$\\nabla_c h$", "how the reward\ndepends on $c$", "info.grad",
            lambda: f"norm {info.grad_norm[sample]:.3f}"),
        ("$\\hat c$", "moved by $\\rho$ along it", "info.c",
            lambda: f"moved by {info.distance[sample]:.2f}"),
    ]  # fmt: skip
    ax = axes(ax, (9.6, 2.0 if info is None else 2.7))
    shape = {"boxstyle": "round,pad=0.5", "facecolor": "white", "edgecolor": COLOURS[0]}
    arrow = {"arrowstyle": "-|>", "color": "0.4"}
    middle, patches, words = {"ha": "center", "va": "center"}, [], []
    for n, (symbol, meaning, code, value) in enumerate(boxes):
        box = ax.text(n, 1, symbol, fontsize=13, bbox=shape, **middle).get_bbox_patch()
        ax.text(n, 0.64, meaning, fontsize=8, **middle)
        ax.text(n, 0.4, code, fontsize=8, family="monospace", color=COLOURS[0], **middle)
        if info is not None:
            own = {"ha": "center", "va": "top", "color": "0.35", "parse_math": False}
            ax.text(n, 0.24, value(), fontsize=8, **own)
        if n:
            ends = {"patchA": patches[-1], "patchB": box, "shrinkA": 2, "shrinkB": 2}
            ax.annotate("", (n, 1), (n - 1, 1), arrowprops=arrow | ends)
        patches.append(box)
        plain = re.sub(r"[$\\]", "", " ".join(meaning.split()))
        words.append(f"{code} ({plain})")
    if info is not None:
        picture = pixels(info.decode(info.x0bar[sample : sample + 1]))
        inset = ax.inset_axes((1.7, -0.33, 0.6, 0.6), transform=ax.transData)
        inset.imshow(picture)
        inset.set_axis_off()
    back = {"connectionstyle": "arc3,rad=0.14", "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", (1, 1.22), (5, 1.22), arrowprops=arrow | back)
    ax.text(3, 1.68, r"the network goes on with $\hat c$", fontsize=8, color="0.4", **middle)
    ax.set(xlim=(-0.6, 5.6), ylim=(-0.35 if info is not None else 0.25, 1.75))
    ax.set_axis_off()
    tell(ax, f"Boxes in a row, each leading to the next: {', '.join(words)}; and back to c.")
    return ax
