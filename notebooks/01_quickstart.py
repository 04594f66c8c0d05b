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
# # Quickstart: a sampler you can stop
#
# A text-to-image model starts from noise and takes some fifty steps to a picture. All that time it
# is told the same thing: one text embedding $c$, fixed before the first step. DATE (Diffusion
# Adaptive Text Embedding) asks at chosen steps what the model expects to end up with, scores that
# expectation, and moves $c$ a little way uphill.
#
# This notebook stops the sampler in the middle, looks at each of those quantities, and then lets it
# go on. It runs on a laptop in two minutes: the model is small, but it is a real latent
# diffusion pipeline.
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

import os

import matplotlib.pyplot as plt
import torch

import datekit as dk

MODEL = "shapes"  # or a hub id or folder of Stable Diffusion 1.x / 2.x, on a GPU
backbone = dk.load(MODEL)
print(backbone.name, "on", backbone.device.type, "-", backbone.recommended)

# %% [markdown]
# ## What does the model draw?
#
# Four prompts whose combination of objects the model never saw together in training, and the plain
# sampler: the embedding stays what the text encoder said (`dk.Fixed`).

# %%
prompts = dk.shapes.prompts("heldout", 4, seed=3, part="tune")
fixed = dk.Sampler(backbone, dk.Fixed()).start(prompts, seeds=[0, 1, 2, 3]).finish()
fixed

# %% [markdown]
# Crisp shapes, and mistakes of meaning: a wrong colour here, a wrong shape there. Which statements
# of each prompt hold? The shapes world comes with an exact judge, classical image analysis that
# knows nothing of networks.

# %% tags=["results"]
for prompt, verdict in zip(prompts, dk.shapes.judge(fixed.pixels, prompts)):
    statements = ", ".join(f"{text}: {'yes' if ok else 'no'}" for text, ok in verdict.statements)
    print("right" if verdict.right else "WRONG", "|", prompt, "|", statements)

# %% [markdown]
# ## What does it expect, ten steps in?
#
# Start again from the same noise and stop. From the noisy latent $x_t$ the network predicts the
# mean of all pictures that could still come out (Tweedie's formula, Eq. 11): $$\bar x_0(x_t, c) =
# \frac{x_t + (1 - \bar\alpha_t)\, s_\theta(x_t, c, t)}{\sqrt{\bar\alpha_t}}$$

# %%
run = dk.Sampler(backbone, dk.Fixed()).start(prompts, seeds=[0, 1, 2, 3])
run.step(10)
run

# %% [markdown]
# This is $\bar x_0$ decoded. It already is a picture, so a reward can score it.
# `shapes-clip` is a small CLIP: its score $h$ is the cosine between picture and prompt. It was
# trained on such predictions and on attacked pictures, which makes its gradient mean something.
# How does $h$ change with the text embedding? `peek` answers and advances nothing.

# %%
reward = dk.rewards.load("shapes-clip")
before = run.state
look = run.peek(reward)
for n, prompt in enumerate(prompts):
    print(f"h = {look.h[n]:.3f}   ||grad_c h|| = {look.grad_norm[n]:.4f}   {prompt}")
assert run.state is before  # looking never advances
assert look.grad.shape == run.state.c.shape  # one number for each entry of the embedding

# %% [markdown]
# ## One update
#
# DATE moves the embedding by a radius $\rho$ along the normalised gradient (Eq. 14), each sample on
# its own: $$\hat c_t = c_{org} + \rho\, \frac{\nabla_c h_t(x_t, c_{org})}{\lVert \nabla_c h_t(x_t,
# c_{org}) \rVert}$$ Fork the paused run: same noise, same past, another future. By how much did $c$
# move, and what did $h$ do?

# %%
SHORT = 0.5
branch = run.fork(dk.DATE(reward, rho=SHORT))
info = branch.step()
with torch.no_grad():
    after = reward(backbone.decode(info.x0bar_hat), prompts)
size = run.state.c_org.flatten(1).norm(dim=1)
for n in range(4):
    print(
        f"moved by {info.distance[n]:.3f} of ||c_org|| = {size[n]:.1f}   "
        f"h: {info.h[n]:.3f} -> {after[n]:.3f}"
    )
assert torch.allclose(info.distance, torch.full((4,), SHORT), rtol=1e-4)
assert after.mean() > info.h.mean()
assert run.state is before  # the fork did not disturb its parent

# %% [markdown]
# ## The whole way: fixed against DATE from the same noise
#
# Now update at every step, from the first one on. `anchor="running"` lets the displacements add up,
# as the authors' code does: each step starts where the last one ended, so each is shorter.

# %%
RHO, SMALL = 1.0, 0.3  # chosen on other prompts
date = dk.DATE(reward, rho=SMALL, anchor="running")
adaptive = dk.Sampler(backbone, date).start(prompts, seeds=[0, 1, 2, 3]).finish()
ax = dk.plot.compare(fixed, adaptive, labels=["fixed", "DATE"])

# %% [markdown]
# And the reward of $\bar x_0$ on the way, the mean of the four and the middle half:

# %%
dk.plot.reward(fixed, adaptive, labels=["fixed", "DATE"])
gain = (adaptive.rewards(reward)[-1] - fixed.rewards(reward)[-1]).mean().item()
print(f"reward of the final prediction: {gain:+.3f} on average")
assert gain > 0

# %% [markdown]
# ## How does a picture form?
#
# One sample, eight of its fifty steps. The two runs share the noise and the prompt; what differs is
# what the network was told.

# %%
ax = dk.plot.filmstrip(fixed, adaptive, sample=0, labels=["fixed", "DATE"])

# %% [markdown]
# ## Back and forth
#
# Nothing is lost on the way. Rewind to step 20 and let it run again: is it the same picture, to the
# bit?

# %%
once = adaptive.state.xt
adaptive.rewind(to=20)
print(adaptive)
adaptive.finish()
assert torch.equal(adaptive.state.xt, once)

# %% [markdown]
# A run can be put away in the middle and taken up elsewhere, also to the bit.

# %%
import tempfile

part = adaptive.fork(at=25)
with tempfile.TemporaryDirectory() as folder:
    again = dk.Run.load(part.save(Path(folder) / "run.pt")).finish()
assert torch.equal(again.state.xt, once)
print("saved before step 25, loaded, finished: the same bits")

# %% [markdown]
# ## Does it help, or did we pick four lucky prompts?
#
# A reward that is optimised must not be its own judge. So: held-out prompts, the same noise for
# each method, and three measures. The guiding CLIP is what DATE climbs. A second CLIP (deeper, with
# another embedding, trained from another seed) only judges, and so does the exact oracle. A random
# direction of the same length shows what moving the embedding does when nobody looks where. Two
# rows show what goes wrong: the CLIP that the guide was made from, before it saw expected pictures
# and attacks (`shapes-clip-plain`), and a radius that is far too long. The rewards see their
# pictures through a small decoder here, which takes less time.

# %%
N, STEPS = 64, 20  # a taste; the results page has the full comparison
many = dk.shapes.prompts("heldout", N, seed=11, part="tune")
heldout = dk.rewards.load("shapes-clip-heldout")
plain, far = dk.rewards.load("shapes-clip-plain"), 8 * RHO
methods = {
    "fixed": dk.Fixed(),
    "random direction": dk.RandomDirection(RHO),
    "DATE, rho 1": dk.DATE(reward, rho=RHO, decoder="tiny"),
    "DATE": dk.DATE(reward, rho=SMALL, anchor="running", decoder="tiny"),
    "plain CLIP, rho 1": dk.DATE(plain, rho=RHO, decoder="tiny"),
    "too far, rho 8": dk.DATE(reward, rho=far, decoder="tiny"),
}
runs = {
    name: dk.Sampler(backbone, method, num_steps=STEPS).start(many, seeds=range(N)).finish()
    for name, method in methods.items()
}
pixels = {name: run.pixels for name, run in runs.items()}

# %% tags=["results"]
from datekit.evaluation import bootstrap

rights = {
    name: [float(v.right) for v in dk.shapes.judge(images, many)] for name, images in pixels.items()
}
guides = {"guide": reward, "plain": plain, "held-out": heldout}
with torch.no_grad():
    values = {
        name: {judge: h(images, many).tolist() for judge, h in guides.items()}
        for name, images in pixels.items()
    }


def change(name, judge=None):
    """The difference to the fixed embedding, by a judge or by the oracle, with its interval."""
    if judge is None:
        return bootstrap(rights[name], minus=rights["fixed"])
    return bootstrap(values[name][judge], minus=values["fixed"][judge])


print(
    f"{N} held-out prompts, seeds 0 to {N - 1}, {STEPS} DDIM steps, "
    f"guidance {backbone.recommended.guidance_scale:g}; DATE: running, rho {SMALL:g} a step"
)
print(f"{'':18}{'guide':>7}{'plain':>7}{'held-out':>10}{'oracle':>8}   difference to fixed [95 %]")
for name, found in values.items():
    means = {judge: sum(rows) / N for judge, rows in found.items()}
    oracle = change(name)
    print(
        f"{name:18}{means['guide']:7.3f}{means['plain']:7.3f}{means['held-out']:10.3f}"
        f"{sum(rights[name]) / N:8.0%}   "
        f"{oracle.mean:+.0%} [{oracle.low:+.0%}, {oracle.high:+.0%}]"
    )
for name in ("DATE, rho 1", "DATE"):
    assert change(name, "guide").low > 0
    assert change(name).low > 0
assert change("DATE", "held-out").low > 0
assert abs(change("random direction").mean) < 0.05
assert change("plain CLIP, rho 1", "plain").low > 0 > change("plain CLIP, rho 1").low
assert change("too far, rho 8").high < 0

# %% [markdown]
# The guide rises, the CLIP that only judges rises, and so does the oracle: its intervals lie above
# zero. A random direction of the same length changes nothing, so it matters where the embedding
# moves. The plain CLIP, at the same radius, raises its own score just as surely, and the oracle
# sees nothing of it: that reward is being gamed. And eight times the radius spoils pictures even
# with the better guide. (Notebook 13 asks what the same time buys in other ways.)
#
# Which pictures changed their verdict? The first four, those that were spoilt last (two at most):


# %%
def turned(after):
    return [n for n in range(N) if rights["DATE"][n] == after != rights["fixed"][n]]


mended, spoilt = turned(1.0), turned(0.0)
print(f"mended: {len(mended)}, spoilt: {len(spoilt)}, of {N}")
last = spoilt[:2]
first = mended[: 4 - len(last)]
shown = first + last
texts = [many[n] for n in shown]
pair = [
    dk.Sampler(backbone, methods[name], num_steps=STEPS).start(texts, seeds=shown).finish()
    for name in ("fixed", "DATE")
]
ax = dk.plot.compare(*pair, labels=["fixed", "DATE"])
found = [v.right for v in dk.shapes.judge(pair[1].pixels, texts)]
assert found == [True] * len(first) + [False] * len(last)

# %% [markdown]
# ## Exercises
#
# 1. At which step does the fixed run decide which object is where? (Hint:
#    `dk.plot.filmstrip(fixed, sample=1, steps=range(0, 16, 2))`.)
# 2. Make `SMALL` 2. What happens to the guiding reward, and what to the oracle?
# 3. Update only `when=dk.late()`, then only `when=dk.early()`. Which one helps more?
#
# <details><summary>What we see</summary>
#
# 1. Within the first ten of fifty steps: two blurs stand where the objects will be, colours and
#    outlines follow.
# 2. The guiding reward may still rise while the oracle falls: the embedding has left the region
#    where the first-order step means anything, and the pictures suffer. A reward is a proxy.
# 3. Measure it with the cell above; one picture is no evidence either way.
#
# </details>

# %%
figure = plt.figure(figsize=(9, 6.4), layout="constrained")
top, bottom = figure.subfigures(2, 1, height_ratios=(1.25, 1))
left, right = top.subplots(1, 2, width_ratios=(1.25, 1))
dk.plot.compare(*pair, labels=["fixed", "DATE"], ax=left)
dk.plot.reward(runs["fixed"], runs["DATE"], labels=["fixed", "DATE"], ax=right)
right.set_title(f"{N} prompts: mean and middle half")
dk.plot.filmstrip(*pair, sample=0, labels=["fixed", "DATE"], ax=bottom.subplots())
left.set_title(f"of {N} prompts DATE mended {len(mended)} and spoilt {len(spoilt)}")
if "DATEKIT_FIGURES" in os.environ:
    figure.savefig(
        Path(os.environ["DATEKIT_FIGURES"]) / "quickstart.png", dpi=110, bbox_inches="tight"
    )
