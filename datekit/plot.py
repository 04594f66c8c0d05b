"""Static figures. Each takes an `ax` (or makes one), returns it, and touches no global setting."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Okabe and Ito's palette: told apart with any colour vision, and in grey print by the line styles beside it
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))


def reward(*runs, reward=None, labels: Sequence[str] | None = None, ax=None):
    """h of x0bar_hat against the step, one line a run: the mean over samples and the middle half of them.

    reward: the first one found among the runs' methods by default; triangles mark the updates.
    """
    reward = reward or next((run.sampler.method.reward for run in runs if run.sampler.method.reward is not None), None)
    if reward is None:
        raise ValueError("none of these runs has a reward of its own; say which: plot.reward(..., reward=...)")
    ax = _axes(ax, (5.2, 3.2))
    for n, run in enumerate(runs):
        h = run.rewards(reward).cpu().numpy()
        steps = [info.i for info in run.history]
        name = labels[n] if labels else type(run.sampler.method).__name__
        mean = h.mean(1)
        ax.plot(steps, mean, color=COLOURS[n % 6], linestyle=STYLES[n % 6], label=name)
        if h.shape[1] > 1:
            ax.fill_between(steps, *np.quantile(h, (0.25, 0.75), axis=1), color=COLOURS[n % 6], alpha=0.15, linewidth=0)
        moved = [row for row, info in enumerate(run.history) if info.updated]
        ax.plot([steps[row] for row in moved], mean[moved], "^", color=COLOURS[n % 6], markersize=4)
    ax.set(xlabel="step (0 is the noisiest)", ylabel=f"reward of x0bar\n({getattr(reward, 'name', 'h')})")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    return ax


def filmstrip(*runs, sample: int = 0, steps: Sequence[int] | int = 8, labels: Sequence[str] | None = None, ax=None):
    """x0bar_hat of one sample as it forms: a row a run, a column a step.

    steps: which steps, or how many, evenly spread over those taken.
    """
    taken = [{info.i: info for info in run.history} for run in runs]
    shared = sorted(set.intersection(*map(set, taken)))
    if not shared:
        raise ValueError("these runs have taken no step in common yet; run.step() or run.finish() first")
    chosen = steps
    if isinstance(steps, int):
        chosen = [shared[n] for n in np.linspace(0, len(shared) - 1, min(steps, len(shared))).round().astype(int)]
    if missing := [i for i in chosen if i not in shared]:
        raise ValueError(f"step(s) {missing} are not among those that were taken, {shared[0]} to {shared[-1]}")
    rows = [[_pixels(infos[i].decode(infos[i].x0bar_hat[sample:sample + 1])) for i in chosen] for infos in taken]
    names = labels or [type(run.sampler.method).__name__ for run in runs]
    ax = tiles(rows, ax=ax, columns=[f"step {i}" for i in chosen], rows_named=names)
    ax.set_title(f"x0bar: {runs[0].prompts[sample]!r}, seed {runs[0].seeds[sample]}", fontsize=10)
    return ax


def compare(*runs, labels: Sequence[str] | None = None, samples: Sequence[int] | None = None, ax=None):
    """The pictures of several runs of the same prompts and seeds: a row a run, a column a sample."""
    samples = range(len(runs[0].prompts)) if samples is None else samples
    names = labels or [type(run.sampler.method).__name__ for run in runs]
    pictures = [run.pixels for run in runs]
    rows = [[_pixels(images[n:n + 1]) for n in samples] for images in pictures]
    return tiles(rows, ax=ax, columns=[_wrapped(runs[0].prompts[n]) for n in samples], rows_named=names)


def tiles(rows: Sequence[Sequence[np.ndarray]], *, columns: Sequence[str] = (), rows_named: Sequence[str] = (), ax=None):
    """Pictures (H, W, 3) in a grid on one axes, with names above the columns and before the rows."""
    height, width = rows[0][0].shape[:2]
    gap = max(2, width // 16)
    canvas = np.ones((len(rows) * (height + gap) - gap, len(rows[0]) * (width + gap) - gap, 3), np.float32)
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            canvas[y * (height + gap):, x * (width + gap):][:height, :width] = picture
    ax = _axes(ax, (1.15 * len(rows[0]) + 1, 1.15 * len(rows) + 0.6))
    ax.imshow(canvas, interpolation="nearest" if width < 200 else "antialiased")
    centres = lambda n, size: [k * (size + gap) + size / 2 for k in range(n)]
    ax.set_xticks(centres(len(rows[0]), width), columns or [""] * len(rows[0]), fontsize=8)
    ax.set_yticks(centres(len(rows), height), rows_named or [""] * len(rows), fontsize=9)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return ax


def cosines(found, *, ax=None):
    """Cosines of eps_hat between timesteps (`analysis.directions`), averaged over samples, as a heat map."""
    ax = _axes(ax, (4.2, 3.6))
    image = ax.imshow(found.matrix.numpy(), vmin=-1, vmax=1, cmap="PuOr_r", origin="lower")
    shown = np.linspace(0, len(found.steps) - 1, min(6, len(found.steps))).round().astype(int)
    ax.set_xticks(shown, [found.steps[n] for n in shown])
    ax.set_yticks(shown, [found.steps[n] for n in shown])
    ax.set(xlabel="step", ylabel="step", title="cosine of eps_hat between steps")
    ax.figure.colorbar(image, ax=ax, shrink=0.8)
    return ax


def agreement(found, *, ax=None):
    """Mean cosine of eps_hat between samples at each step (`analysis.directions`), over the band where 95 % of random ones lie."""
    ax = _axes(ax, (5.2, 3.2))
    for n, (name, values) in enumerate(found.by_step.items()):
        if values.isfinite().any():
            ax.plot(found.steps, values.numpy(), color=COLOURS[n], linestyle=STYLES[n], label=name)
    band = 1.96 * found.dimension**-0.5
    ax.axhspan(-band, band, color="0.85", label="random directions, 95 %")
    ax.set(xlabel="step (0 is the noisiest)", ylabel="cosine of eps_hat", ylim=(-0.25, 1.02))
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=8)
    return ax


def tokens(shares, *, sample: int = 0, ax=None):
    """Each token's share of the gradient of one sample (`analysis.token_shares`); padding and special tokens are pale."""
    words = shares.tokens[sample]
    ax = _axes(ax, (0.42 * len(words) + 1.2, 2.8))
    pale = [word.startswith("<") and word.endswith(">") for word in words]
    ax.bar(range(len(words)), shares.share[sample].numpy(), color=["#B8CFDC" if p else COLOURS[0] for p in pale])
    ax.set_xticks(range(len(words)), words, rotation=60, ha="right")
    ax.set(ylabel="share of ||grad_c h||^2", title=f"{shares.prompts[sample]!r}, step {shares.i}")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def guidance(*terms, sample: int = 0, ax=None):
    """What an update does in x (`analysis.guidance_term`), a column a term: x0bar, its change enlarged (grey is none), size of the term."""
    import torch

    pick = slice(sample, sample + 1)
    seen, changed, sizes = [], [], []
    for term in terms:
        with torch.no_grad():
            before, after = term.decode(term.x0bar[pick]), term.decode((term.x0bar + term.shift)[pick])
        change, size = after - before, term.term[pick].double().square().mean(1, keepdim=True).sqrt()
        seen.append(_pixels(before))
        changed.append(_pixels(0.5 + 0.5 * change / change.abs().max().clamp_min(1e-30)))
        grown = torch.nn.functional.interpolate(size / size.max().clamp_min(1e-30), before.shape[-2:], mode="nearest")
        sizes.append(_pixels(grown.expand(-1, 3, -1, -1)))
    names = ["x0bar", "its change,\nenlarged", "size of\nthe term"]
    ax = tiles([seen, changed, sizes], ax=ax, columns=[f"step {term.i}" for term in terms], rows_named=names)
    ax.set_title(f"{terms[0].prompts[sample]!r}, rho = {terms[0].rho:g}", fontsize=10)
    return ax


def slopes(error, *, sample: int = 0, ax=None):
    """Errors of both first-order expansions against rho (`analysis.taylor_error`), over the line that a second-order error follows."""
    ax = _axes(ax, (4.8, 3.4))
    rhos = error.rhos.numpy()
    rows = {"score": (error.score_error, error.score_slope), "reward": (error.reward_error, error.reward_slope)}
    for n, (name, (values, slope)) in enumerate(rows.items()):
        label = f"{name}: slope {slope[sample]:.2f}"
        ax.loglog(rhos, values[:, sample].numpy(), marker="o", color=COLOURS[n], linestyle=STYLES[n], markersize=3.5, label=label)
        ax.loglog(rhos, values[-1, sample].item() * (rhos / rhos[-1]) ** 2, color="0.6", linewidth=0.8, zorder=0)
    ax.set(xlabel="rho", ylabel="error of the first order", title=f"{error.kind} reading, step {error.i}")
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(axis="x", which="minor", labelbottom=False)
    ax.legend(frameon=False, title="grey: slope 2", loc="lower right", fontsize=8, title_fontsize=8)
    return ax


def stability(found, *, ax=None):
    """The stable share of grad_c h against the step (`analysis.signal_to_noise`), a line a reward, with its 95 % intervals."""
    ax = _axes(ax, (5.2, 3.2))
    for n, name in enumerate(found.rewards):
        spans = np.array([found.interval(n, row) for row in range(len(found.steps))])
        ax.plot(found.steps, spans[:, 0], marker="o", color=COLOURS[n % 6], linestyle=STYLES[n % 6], markersize=4, label=name)
        ax.fill_between(found.steps, spans[:, 1], spans[:, 2], color=COLOURS[n % 6], alpha=0.15, linewidth=0)
    ax.set(xlabel="step (0 is the noisiest)", ylabel="stable share of grad_c h", ylim=(0, 1.03))
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False)
    return ax


def chain(found, *, samples: Sequence[int] | None = None, ax=None):
    """x0bar over what the reward wants changed in it (`analysis.chain_rule`): the push enlarged (grey is none), and where it acts."""
    import torch

    samples = range(len(found.prompts)) if samples is None else samples
    rows = [[], [], []]
    for n in samples:
        push, size = found.push[n:n + 1], found.map[n:n + 1, None]
        rows[0].append(_pixels(found.image[n:n + 1]))
        rows[1].append(_pixels(0.5 + 0.5 * push / push.abs().max().clamp_min(1e-30)))
        grown = torch.nn.functional.interpolate(size / size.max().clamp_min(1e-30), push.shape[-2:], mode="nearest")
        rows[2].append(_pixels(grown.expand(-1, 3, -1, -1)))
    return tiles(rows, ax=ax, columns=[_wrapped(found.prompts[n]) for n in samples],
                 rows_named=["x0bar", "push along\ngrad_x0bar h", "size of\ngrad_x0bar h"])


def _pixels(images) -> np.ndarray:
    return images[0].detach().float().clamp(0, 1).permute(1, 2, 0).cpu().numpy()


def _wrapped(text: str, width: int = 17) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width))


def _axes(ax, size: tuple[float, float]):
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=size, layout="constrained")[1]
