# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Which reward, and when is it being fooled?
#
# DATE does what its reward asks for, and a reward is a proxy. Here four small rewards and two sums
# of them guide, and each result is judged by all rewards, by a CLIP that guides nobody, and by the
# exact oracle. From which rho on does the reward still rise while the pictures get worse? Does a
# sum of rewards help, even by the measure of one of its terms? And what does a reward do that
# ignores the prompt altogether?
#
# [The live page](../docs/live) runs DATE in a browser, with nothing to install.

# %%
import importlib.util
import subprocess
import sys
from pathlib import Path

REPOSITORY = ""  # owner/name on GitHub; `make badges` writes it
if importlib.util.find_spec("datekit") is None:  # Colab: from a wheel beside this, or the index
    package = f"{max(Path().glob('datekit-*.whl'), default='datekit')}[lab]"
    subprocess.check_call([sys.executable, "-m", "pip", "install", "-q", package])
if REPOSITORY and not Path("studies").is_dir():  # what some notebooks read beside the package
    address = f"https://github.com/{REPOSITORY}"
    subprocess.check_call(["git", "clone", "-q", "--depth", "1", address, "repository"])
    Path("studies").symlink_to("repository/notebooks/studies")

import tempfile

import matplotlib.pyplot as plt
import numpy as np
import studies
import torch
from IPython.display import Markdown
from studies import ablate, runner
from studies.ablate import REWARDS, SWEEP
from studies.trials import JUDGES, to_common_scale

import datekit as dk
from datekit.evaluation import bootstrap

# %%
# True runs the study of the rewards again, about an hour and a half on one core; interrupted, it
# goes on
AFRESH = False
if AFRESH:
    file = Path(tempfile.gettempdir()) / "datekit-ablations.json"
    runner.run(ablate.STUDY, file, groups=("reward",))
    content = studies.load(file)
else:
    content = studies.load("ablations")
MEASURES = ablate.STUDY.measures
print(content["command"], content["date"], content["hardware"], sep="\n")
print(
    f"{content['side_pairs']} pairs of held-out prompt and seed; {content['steps']} steps, a fifth "
    "of them updates, which add up"
)
print("judges:", JUDGES, "and the oracle")

# %% [markdown]
# ## The rewards disagree
#
# `shapes-preference` was trained on which of two pictures is preferred, as ImageReward is (a head
# on the features of `shapes-clip`, so no independent judge of it; the held-out CLIP and the oracle
# are); `shapes-aesthetic` rates a look, red and large and centred, whatever the prompt says. What
# do they say of the same four pictures?

# %%
backbone = dk.load("shapes")
rewards = {name: dk.rewards.load(full) for name, full in JUDGES.items()}
prompts, seeds = dk.shapes.prompts("heldout", 4, seed=5, part="tune"), [0, 1, 2, 3]
fixed = (
    dk.Sampler(backbone, dk.Fixed(), num_steps=content["steps"])
    .start(prompts, seeds=seeds)
    .finish()
)
verdict = [v.right for v in dk.shapes.judge(fixed.pixels, prompts)]
with torch.no_grad():
    for name, reward in rewards.items():
        print(f"{name:11}", "  ".join(f"{h:6.2f}" for h in reward(fixed.pixels, prompts)))
    swapped = prompts[1:] + prompts[:1]
    assert torch.equal(
        rewards["aesthetic"](fixed.pixels, prompts), rewards["aesthetic"](fixed.pixels, swapped)
    )  # it does not read
    assert not torch.equal(
        rewards["guide"](fixed.pixels, prompts), rewards["guide"](fixed.pixels, swapped)
    )
print("all right  ", "  ".join(f"{ok!s:>6}" for ok in verdict))

# %% [markdown]
# ## What a reward that ignores the prompt does

# %%
strong = dict(rho=max(SWEEP), anchor="running", when=dk.fraction(0.2))
runs = {
    name: dk.Sampler(backbone, dk.DATE(rewards[name], **strong), num_steps=content["steps"])
    .start(prompts, seeds=seeds)
    .finish()
    for name in ("guide", "aesthetic")
}
ax = dk.plot.compare(fixed, *runs.values(), labels=["fixed", *runs])
with torch.no_grad():
    rise = (
        (
            rewards["aesthetic"](runs["aesthetic"].pixels, prompts)
            - rewards["aesthetic"](fixed.pixels, prompts)
        )
        .mean()
        .item()
    )
    fall = (
        (
            rewards["heldout"](runs["aesthetic"].pixels, prompts)
            - rewards["heldout"](fixed.pixels, prompts)
        )
        .mean()
        .item()
    )
print(
    f"guided by the aesthetic reward at rho {strong['rho']:g}: aesthetic {rise:+.2f}, held-out "
    f"CLIP {fall:+.2f} (4 pictures)"
)
assert rise > 0

# %% [markdown]
# ## Everyone judged by everyone
#
# Paired differences to the fixed embedding at the radius that the held-out CLIP likes best for that
# reward, each in units of the spread of that judge over the fixed pictures, so that the columns
# compare. The diagonal is what was asked for; the rest is what it did.

# %%
pairs = content["side_pairs"]


def difference(row, judge):
    """What a row gains over the fixed embedding, pair by pair."""
    return content.values(row, judge, "reward") - content.values("fixed", judge)[:pairs]


def rows_of(name):
    """The rows of a reward, by rho."""
    return [f"{name}, rho {rho:g}" for rho in SWEEP]


best = {
    name: max(rows_of(name), key=lambda row: difference(row, "heldout").mean()) for name in REWARDS
}
spread = {judge: content.values("fixed", judge)[:pairs].std() or 1.0 for judge in MEASURES}
matrix = np.array(
    [
        [difference(best[name], judge).mean() / spread[judge] for judge in MEASURES]
        for name in REWARDS
    ]
)
figure, ax = plt.subplots(figsize=(7, 3.4), layout="constrained")
image = ax.imshow(matrix, cmap="PuOr_r", vmin=-abs(matrix).max(), vmax=abs(matrix).max())
ax.set_xticks(range(len(MEASURES)), MEASURES, rotation=30, ha="right")
ax.set_yticks(range(len(REWARDS)), best.values())
for (n, m), value in np.ndenumerate(matrix):
    ax.text(
        m,
        n,
        f"{value:+.2f}",
        ha="center",
        va="center",
        color="white" if abs(value) > 0.6 * abs(matrix).max() else "black",
    )
ax.set(xlabel="judged by", title="gain over fixed, in spreads of the judge")
assert all(
    matrix[REWARDS.index(name), MEASURES.index(name)] > 0
    for name in ("guide", "preference", "aesthetic")
)  # the diagonal

# %% [markdown]
# ## From which rho on is it being gamed?
#
# Solid: the reward that guides, judged by itself. Dashed: the share of pictures that are right.
# Gamed means: the first interval is wholly above zero and the oracle's wholly below. Where both are
# wholly below, the steps are too long for the reward itself: nothing is gamed, the pictures just
# break.

# %%
figure, axes = plt.subplots(1, len(REWARDS), figsize=(13, 2.9), layout="constrained", sharey=True)
gamed, broken = {}, {}
for ax, name in zip(axes, REWARDS):
    asked = [
        bootstrap(
            np.mean([difference(row, part) / spread[part] for part in name.split(" + ")], axis=0)
        )
        for row in rows_of(name)
    ]
    right = [bootstrap(difference(row, "oracle")) for row in rows_of(name)]
    gamed[name] = [rho for rho, h, ok in zip(SWEEP, asked, right) if h.low > 0 and ok.high < 0]
    broken[name] = [rho for rho, h, ok in zip(SWEEP, asked, right) if h.high < 0 and ok.high < 0]
    for values, style, label in ((asked, "-o", "itself, in spreads"), (right, "--s", "oracle")):
        mean, low, high = np.array(values).T
        ax.errorbar(
            SWEEP,
            mean,
            yerr=[mean - low, high - mean],
            fmt=style,
            capsize=2,
            markersize=4,
            label=label,
        )
    ax.axhline(0, color="0.7", linewidth=0.8)
    ax.set(xscale="log", title=name, xlabel="rho")
    ax.set_xticks(SWEEP, [f"{rho:g}" for rho in SWEEP])
    ax.minorticks_off()
axes[0].set_ylabel("gain over fixed")
axes[0].legend(frameon=False, fontsize=8)
for name in REWARDS:
    print(
        f"{name:18} gamed at rho {gamed[name] or 'none of these'}, broken at "
        f"{broken[name] or 'none'}"
    )
assert len(gamed["aesthetic"]) > 2  # what ignores the prompt is gamed soon
assert max(SWEEP) in gamed["guide"] + broken["guide"]

# %% [markdown]
# ## Does a second reward help the first?
#
# The paper says that CLIP and ImageReward together beat CLIP even on CLIP. Averaged over the sweep,
# so that no radius is picked:

# %%


def swept(name, judge):
    """A judge's values of a reward, pair by pair, averaged over rho."""
    return np.mean([content.values(row, judge, "reward") for row in rows_of(name)], axis=0)


for judge in MEASURES:
    both = bootstrap(swept("guide + preference", judge), minus=swept("guide", judge))
    word = "more" if both.low > 0 else "less" if both.high < 0 else "no decided difference"
    print(f"guide + preference against guide alone, by {judge:10} {both}  {word} ({pairs} pairs)")
by_oracle = bootstrap(swept("guide + preference", "oracle"), minus=swept("guide", "oracle"))
assert by_oracle.low < 0 < by_oracle.high

# %% [markdown]
# Not here: where the first reward is robust, the sum makes no more pictures right than the CLIP
# alone; the interval of the difference holds zero.

# %%
both = to_common_scale(rewards["guide"] + rewards["preference"], fixed.pixels, prompts)
scaled = {part.name: weight * part(fixed.pixels, prompts) for weight, part in both.parts}
print({name: [round(x, 2) for x in values.tolist()] for name, values in scaled.items()})
assert all(abs(values.std().item() - 1) < 1e-3 for values in scaled.values())
assert torch.allclose(sum(scaled.values()), both(fixed.pixels, prompts).detach(), atol=1e-5)

# %% [markdown]
# ## All of it

# %%
Markdown(content.table("reward", MEASURES))

# %% [markdown]
# ## Exercises
#
# 1. Give the aesthetic reward a small weight beside `shapes-clip`. Up to which weight does the
#    held-out CLIP not mind?
# 2. Use the held-out CLIP as the guide and `shapes-clip` as the judge. Is gaming symmetric?
# 3. `dk.rewards.PerConcept(reward, split)` asks for each thing of a prompt. Does the least of the
#    parts game less easily than the whole?
#
# <details><summary>Solutions</summary>
#
# 1. `dk.DATE(rewards["guide"] + 0.1 * rewards["aesthetic"], ...)`, the sum put on a common scale by
#    `to_common_scale`; judge with `studies.trials.Trials.judge`.
# 2. Swap the names in the cell of the four pictures; the deeper CLIP is the harder one to fool, but
#    it too is a network.
# 3. Split at " and "; for the relation keep the whole prompt as one more part.
#
# </details>
