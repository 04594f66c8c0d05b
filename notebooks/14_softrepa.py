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
# # What do soft tokens learn by contrast?
#
# DATE spends gradients while a picture forms. SoftREPA
# ([arXiv 2503.08250](https://arxiv.org/abs/2503.08250)) spends them beforehand: a handful of text
# tokens, the same for every prompt, is trained so that the frozen model tells right captions from
# wrong ones. What does that loss look like on one batch? What do the tokens know afterwards that
# the model did not? And are the pictures better for it?
#
# `make page` builds [the live page](../docs/live), which runs DATE in a browser with nothing to
# install.

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

import json
import math

import matplotlib.pyplot as plt
import pandas as pd
import torch
from studies import softrepa_sweep
from studies.results import earlier

import datekit as dk
import datekit.plot  # from here on figures carry their text alternative
from datekit.methods.soft_tokens import shipped_file
from datekit.methods.softrepa import place

# %%
MODEL = "shapes"  # or "shapes-flow"; on a GPU a hub id, with PAIRS a folder of images and captions
PAIRS = None
STEPS = 8  # of training; the tokens that ship had 500
backbone = dk.load(MODEL)
pairs = dk.softrepa.read_pairs(PAIRS) if PAIRS else softrepa_sweep.shapes_pairs(64, seed=11)
print(f"{MODEL}: {len(pairs)} images with captions, such as {pairs.captions[0]!r}")

# %% [markdown]
# ## The model as a critic
#
# Take four images, their four captions, **one** noise $\epsilon$ and **one** time $t$. How badly
# does the model denoise image $i$ when it is told caption $j$?
# $$e_{ij} = \operatorname{mean} \big( f_\theta(\alpha_t x_i + \sigma_t \epsilon,\, t,\, c_j) -
# \text{target}_i \big)^2$$
# Here $f_\theta$ is the network's answer (noise, $v$ or velocity, see lesson 12) and
# $\text{target}_i$ what training asks it to answer for image $i$ and this noise. Nothing was
# trained to compare captions. But a model that has learnt what a caption means should do best with
# the right one: the diagonal should hold the least error of each row.

# %%
T, B = 600, 4
rows = [pairs.captions.index(text) for text in dict.fromkeys(pairs.captions)][:B]
captions = [pairs.captions[n] for n in rows]
x0, square = pairs.latents(backbone, rows), torch.arange(B).expand(B, B)
noise = torch.randn(1, *x0.shape[1:], generator=torch.Generator().manual_seed(0)).to(x0)
xt, target = dk.softrepa.add_noise(backbone, x0, noise, T)
with torch.no_grad():
    errors = dk.softrepa.denoising_errors(
        backbone, x0, backbone.encode(captions), square, noise, T
    ).cpu()
    answer = backbone.predict(xt[:1], T, backbone.encode(captions[1:2]))  # one pair, written out
by_hand = (answer - target[:1]).square().mean().item()
print(f"t = {T}, image 0 under caption 1: error {errors[0, 1]:.4f}, by hand {by_hand:.4f}")
print(*[f"{n}: {text}" for n, text in enumerate(captions)], sep="\n")
assert abs(by_hand / errors[0, 1].item() - 1) < 1e-3

# %% [markdown]
# ## From errors to a loss
#
# Errors become logits, and each row is asked for its diagonal:
# $$l_{ij} = 4\, e^{-e_{ij} / 0.07}, \qquad
# L = -\frac 1B \sum_i \log \frac{e^{l_{ii}}}{\sum_j e^{l_{ij}}}$$
# Guessing gives $\log B$.

# %%
contrast = dk.softrepa.Contrast()
logits = 4 * torch.exp(-errors / 0.07)
chances = logits.softmax(1)
loss = -chances.diagonal().log().mean().item()
library = contrast.loss(errors, torch.arange(B)).item()
fig, axes = plt.subplots(1, 3, figsize=(10, 3), layout="constrained")
titles = ("$e_{ij}$ - least of the row, x 1000", "logits $l_{ij}$", "softmax over captions")
above = 1000 * (errors - errors.amin(1, keepdim=True))
for ax, values, title in zip(axes, (above, logits, chances), titles, strict=True):
    ax.imshow(values, cmap="viridis")
    ax.set(title=title, xlabel="caption", ylabel="image", xticks=range(B), yticks=range(B))
    for (i, j), value in zip(torch.cartesian_prod(*[torch.arange(B)] * 2), values.flatten()):
        colour = "white" if value < (values.min() + values.max()) / 2 else "black"
        ax.text(j, i, f"{value:.3f}", ha="center", va="center", color=colour, fontsize=8)
plt.show()
right = (errors.argmin(1) == torch.arange(B)).sum().item()
print(f"{right} of {B} rows have their least error under their own caption")
print(f"loss {loss:.4f}, of the library {library:.4f}, of a guess {math.log(B):.4f}")
assert abs(loss - library) < 1e-5
assert loss < math.log(B)
assert MODEL != "shapes" or errors.argmin(1)[1:3].tolist() == [0, 3]

# %% [markdown]
# The loss is below that of a guess, but look at row 1, the blue star: its least error is under
# caption 0, "a star". That caption is true of it as well! Contrast within a batch counts every
# caption but an image's own as wrong, and in a small world many are not. Row 2 has no such excuse:
# a blue square, which is not there, does a little better than the green one that is. And in row 3
# "a star" all but ties with the true caption. As a critic this model is weak.
#
# ## Why the exponential?
#
# Plain logits $-e/0.07$ would do as well to rank captions. The difference is in the pull, the
# derivative of a logit: it is $1/0.07$ everywhere for plain logits, and
# $\frac{4}{0.07}\, e^{-e/0.07}$ with the exponential. Vertical lines show the model's error under
# the right captions at five times.

# %%
grid = torch.logspace(-2.5, 0, 200)
sharp, raw = 4 / 0.07 * torch.exp(-grid / 0.07), torch.full_like(grid, 1 / 0.07)
TIMES = (100, 300, 500, 700, 900)
seen = {}
for t in TIMES:
    with torch.no_grad():
        texts = backbone.encode(captions)
        own = dk.softrepa.denoising_errors(backbone, x0, texts, torch.arange(B)[:, None], noise, t)
    seen[t] = own.mean().item()
fig, ax = plt.subplots(figsize=(6, 3), layout="constrained")
ax.plot(grid, sharp, label="with the exponential", color=dk.plot.COLOURS[0])
ax.plot(grid, raw, "--", label="plain", color=dk.plot.COLOURS[1])
for n, t in enumerate(sorted(seen, key=seen.get)):
    ax.axvline(seen[t], color="0.8", linewidth=0.8, zorder=0)
    ax.text(seen[t], 59 + 5 * (n % 3), f"t = {t}", fontsize=7, ha="center", va="bottom")
ax.set(xlabel="error e", ylabel="pull, -dl/de", xscale="log", ylim=(0, 58))
ax.legend(frameon=False)
plt.show()
leaf = torch.tensor([[0.1, 0.2]], requires_grad=True)
(pull,) = torch.autograd.grad(contrast.logits(leaf).sum(), leaf)
torch.testing.assert_close(-pull, 4 / 0.07 * torch.exp(-leaf.detach() / 0.07))
assert sharp.max() <= 4 / 0.07
assert MODEL != "shapes" or seen[900] > seen[700] > seen[100] > seen[300]

# %% [markdown]
# The exponential pulls hard where the model denoises well and lets go where it does not: at the
# noisiest time nearly nothing is left, and training does not waste its tokens there. Plain logits
# pull as hard there as anywhere. Surprising at first: the least error is not at the cleanest time.
# This network answers $v = \alpha \epsilon - \sigma x_0$ (see the lesson on other models), which at
# little noise asks for the noise itself, and that hides well in a clean picture.
#
# ## Train
#
# Only the tokens have a gradient. Does the network stay as it was, to the bit?

# %%
before = [value.clone() for value in backbone.network.state_dict().values()]
tokens = dk.softrepa.train(backbone, pairs, steps=STEPS, lr=1e-2, seed=0)
unchanged = all(map(torch.equal, before, backbone.network.state_dict().values()))
moved = tokens.config["curve"][-1]["step"]
learnt = sum(x.numel() for x in tokens.numbers.values())
print(f"{tokens}: {learnt} numbers, {moved} steps; network unchanged: {unchanged}")
assert unchanged
assert moved == STEPS

# %% [markdown]
# ## What do the tokens know?
#
# With $K$ captions of which one belongs to the image, $\log K - L$ bounds the mutual information of
# image and caption from below (InfoNCE): the loss says how much the critic knows. At which times is
# that knowledge, and do the tokens that ship add to it? Asked of 32 scenes that training never
# saw, each against seven captions of others.

# %%
K = 8
fresh = pairs if PAIRS else softrepa_sweep.shapes_pairs(64, seed=12)
shipped = dk.softrepa.load(MODEL) if shipped_file(MODEL).is_file() else tokens
none = shipped.replace(tokens=shipped.tokens[:, :0])
known = {"without tokens": [], "with tokens": []}
for t in TIMES:
    plan = dk.softrepa.Plan(batch=K, seed=5, t_range=(t, t + 1))
    draws = [dk.softrepa.Batch.draw(fresh, plan, number) for number in range(4)]
    for name, soft in zip(known, (none, shipped), strict=True):
        values = []
        for draw in draws:
            with torch.no_grad(), place(backbone, soft, t):
                texts, latents = backbone.encode(draw.texts), fresh.latents(backbone, draw.images)
                e = dk.softrepa.denoising_errors(backbone, latents, texts, draw.columns, noise, t)
            own = contrast.logits(e.cpu()).log_softmax(1).gather(1, draw.positive[:, None])
            values += (math.log(K) + own[:, 0]).tolist()
        known[name].append(values)

# %%
ceiling = math.log(K) - math.log(1 + (K - 1) * math.exp(-4))
fig, ax = plt.subplots(figsize=(6, 3), layout="constrained")
for n, (name, rows) in enumerate(known.items()):
    means, low, high = map(torch.tensor, zip(*map(dk.evaluation.bootstrap, rows), strict=True))
    at = torch.tensor(TIMES) + 16 * n - 8
    style = {"color": dk.plot.COLOURS[n], "marker": dk.plot.MARKERS[n], "capsize": 2}
    ax.errorbar(at, means, torch.stack([means - low, high - means]), label=name, **style)
ax.axhline(0, color="0.6", linewidth=0.8)
ax.set(xlabel="t (999 is the noisiest)", ylabel="log K - loss (nats)", xticks=TIMES)
ax.legend(frameon=False)
plt.show()
for t, plain, soft in zip(TIMES, *known.values(), strict=True):
    added = dk.evaluation.bootstrap(soft, minus=plain)
    print(f"t = {t}: tokens add {added} nats (32 images)")
    assert MODEL != "shapes" or abs(added.mean) < 0.01
print(f"at most {ceiling:.3f} with logits in [0, 4], and log {K} = {math.log(K):.3f}")
assert max(max(map(max, rows)) for rows in known.values()) <= ceiling <= math.log(K)

# %% [markdown]
# By this measure the knowledge sits at middle times, and it is small beside the ceiling. At little
# noise any caption will do to denoise. At t = 900 the errors are so large that the exponential
# makes all logits nearly 0: there the measure cannot say what the model knows. (It knows something:
# the first steps decide the layout.) The two lines all but coincide: the tokens that ship add less
# than a hundredth of a nat anywhere, so this training taught the critic next to nothing. Whether
# other tokens could learn more is not shown.
#
# ## Do they draw better?
#
# Tokens are a method like any other: they are put in for a step and taken out again, and they add
# up with DATE. First what one can check here: nothing stays behind, and the tokens do change
# pictures.

# %%
prompts = dk.shapes.prompts("heldout", 4, seed=4, part="test")
date = dk.DATE(dk.rewards.load("shapes-clip"), rho=0.6, when=dk.every(4))


def draw(method):
    """Four latents after ten steps."""
    run = dk.Sampler(backbone, method, num_steps=10).start(prompts, seeds=range(4))
    return run.finish().state.xt


fixed, soft = draw(dk.Fixed()), draw(dk.SoftREPA(shipped))
both = draw(dk.SoftREPA(shipped) + date)
move = ((soft - fixed).norm() / fixed.norm()).item()
print(f"tokens move the latent by {move:.0%} of its length")
print(f"DATE beside them by {((both - soft).norm() / fixed.norm()).item():.0%}")
assert torch.equal(draw(dk.Fixed()), fixed)  # nothing stays behind
assert not torch.equal(soft, fixed)
assert not torch.equal(both, soft)

# %% [markdown]
# To change pictures is not to better them. That takes hundreds of prompts: the table is of the file
# that `python -m studies softrepa` writes, each row against the fixed embedding on the same noise,
# with 95 % intervals. Its tokens are the best of ten settings by the held-out reward on other
# prompts; the rows of more steps spend there what DATE spends on gradients.

# %% tags=["results"]
name = {"shapes": "shapes", "shapes-flow": "flow"}.get(MODEL, "shapes")
path = Path("studies") / "results" / f"softrepa-{name}.json"
found = json.loads(path.read_text())


def interval(row, what, form):
    """The paired difference to the fixed embedding."""
    return "{:{f}} [{:{f}}, {:{f}}]".format(*row[f"{what} - fixed"], f=form)


def says(row, what):
    """What an interval says, in a word."""
    _, low, high = row[f"{what} - fixed"]
    return "more" if low > 0 else "less" if high < 0 else "no clear change"


print(f"{earlier(found)}{found['model']}, {found['pairs']} prompts, {found['date']}")
for part, measure in (("rows", "heldout"), ("rows", "oracle"), ("counting", "oracle")):
    what = {"heldout": "held-out reward", "oracle": "right by the oracle"}[measure]
    where = " where things are counted" if part == "counting" else ""
    print(f"SoftREPA, {what}{where}: {says(found[part]['SoftREPA'], measure)}")
table = {
    method: {
        "held-out reward": "" if method == "fixed" else interval(row, "heldout", "+.3f"),
        "right by the oracle": "" if method == "fixed" else interval(row, "oracle", "+.1%"),
        "seconds a picture": row["processor seconds a picture"],
    }
    for method, row in found["rows"].items()
}
pd.DataFrame(table).T

# %% [markdown]
# On `shapes` the tokens make fewer pictures right, by 1.6 points, surely though not by much. Beside
# DATE they add nothing visible, 6.2 points against 5.9 without them. (Its rho is 0.6, at every
# fourth step.) They cost next to nothing either. The paper reports better
# pictures and worse counting for Stable Diffusion. A small model that was trained on captions half
# of whose words were drawn at random, so that errors of meaning remain for the lessons, is another
# case.
#
# ## What held
#
# - The loss written out by hand is the library's, and on this batch it is below that of a guess.
# - With the exponential the pull is $\frac{4}{0.07} e^{-e/0.07}$, at most $4 / 0.07 = 57$.
# - Training moves the tokens alone: the network stayed the same to the bit.
# - The tokens that ship taught the critic next to nothing, made fewer pictures right, and changed
#   nothing visible beside DATE.
# - The critic never knows more than logits in $[0, 4]$ allow, and the tokens that ship add less
#   than 0.01 nats to it at each of five times.
# - Tokens change pictures, DATE beside them changes them further, and nothing of either stays
#   behind in the model.
#
# ## Exercises
#
# 1. At which error do plain logits and those with the exponential pull equally hard, and how hard
#    do the latter pull at $e = 0.3$?
# 2. How much can logits in $[0, 4]$ tell at most of $K = 8$ captions, and of $K = 64$? What does
#    that say of the loss as a measure of knowledge?
# 3. SoftREPA can index its tokens by time: 100 bins, each with one vector that is added to all
#    tokens. How many numbers is that, with the four tokens of width 96 that were trained here?
#
# <details><summary>Solutions</summary>
#
# 1. At $e = 0.07 \log 4 = 0.097$, where the curves cross. At 0.3 it is $57.1\, e^{-4.29} = 0.79$,
#    against 14.3 for plain logits.
# 2. $\log K - \log(1 + (K - 1) e^{-4})$: 1.96 of 2.08 nats for 8, and 3.39 of 4.16 for 64. With
#    more captions the ceiling falls further below $\log K$: the loss measures the critic, not the
#    truth.
# 3. $4 \cdot 96 + 100 \cdot 96 = 9984$, where without time it is 384.
#
# </details>
