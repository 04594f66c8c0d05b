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
# # Which picture does the model expect?
#
# A sampler turns noise into a picture in many small steps. Halfway it holds a noisy picture $x_t$:
# $$x_t = \alpha_t\, x_0 + \sigma_t\, \epsilon, \qquad \alpha_t^2 + \sigma_t^2 = 1$$
# with $x_0$ the clean picture, $\epsilon$ standard normal noise, and $\sigma_t$ near 1 at the start
# and near 0 at the end. (This $\alpha_t$ is the $\sqrt{\bar\alpha_t}$ of the quickstart. The time
# $t$ falls from 999 at most in jumps: 50 steps visit 981, 961, ..., 1, and 20 steps 951, 901, ...,
# 1.) Many pictures could still come out. Their mean, under the prompt whose embedding is $c$, is
# what the model *expects*:
# $$\bar x_0(x_t, c) = E[x_0 \mid x_t, c]$$
# A reward needs a picture, and $\bar x_0$ is the only one there is before the end; all that DATE
# does rests on it. A trained network knows it only roughly. Here we take a model for which it is a
# formula: $p(x_0 \mid c)$ is a mixture of four Gaussians whose means and weights are smooth, curved
# functions of $c$. So we can ask when $\bar x_0$ is right, and what it looks like.
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

import matplotlib.pyplot as plt
import torch

import datekit as dk

model = dk.load("gaussian-mixture")
PROMPT = "a red circle"
cond = model.encode([PROMPT])
print("how likely each kind of picture is:", model.log_weights(cond).exp()[0].numpy().round(3))

# %% [markdown]
# This prompt leaves several kinds of picture possible: three in four are of one kind, one in five
# of another. (They are smooth patches of colour; this model never saw a circle.) We take a picture
# of the rarer kind and add noise.


# %%
def many(n):
    """The embedding of the prompt, n times."""
    return dk.Conditioning.cat([cond] * n)


def add_noise(x0, t):
    """xt = alpha x0 + sigma eps, with the same eps for each level of noise."""
    alpha, sigma = model.level(t)
    draw = torch.Generator().manual_seed(0)
    return alpha * x0 + sigma * torch.randn(x0.shape, generator=draw, dtype=x0.dtype)


def kind(x0):
    """Which of the four kinds each picture is of, by the nearest mean."""
    return (x0.flatten(1)[:, None] - model.means(cond)).norm(dim=2).argmin(1)


x0 = model.sample(many(8), range(8))
print("the kinds of eight draws:", kind(x0).tolist())
rare = x0[2:3]
assert kind(rare).item() == 0

# %% [markdown]
# ## Is the formula right?
#
# Bayes says what $\bar x_0$ must be: draw many pictures from $p(x_0 \mid c)$, weigh each by how
# well it explains $x_t$, and take the mean. This uses nothing of the model but its draws. Does the
# model's own $\bar x_0$ agree, within the error of such an estimate?

# %%
T, DRAWS = 951, 4000
xt, (alpha, sigma) = add_noise(rare, T), model.level(T)
candidates = model.sample(many(DRAWS), range(DRAWS))
weights = (-((xt - alpha * candidates) ** 2).flatten(1).sum(1) / (2 * sigma**2)).softmax(0)
mean = torch.einsum("n,nchw->chw", weights, candidates)
error = torch.einsum("n,nchw->chw", weights**2, (candidates - mean) ** 2).sqrt()
away = ((mean - model.x0bar(xt, T, cond)[0]) / error).square().mean().sqrt()
print(f"t = {T}, {DRAWS} draws: {away:.2f} standard errors apart (root mean square of entries)")
assert away < 2

# %% [markdown]
# ## How does a network know it?
#
# A denoiser does not average over pictures. It predicts the noise, $\epsilon_\theta$. That is the
# *score* $s$ in another unit: the slope of the log density of $x_t$ (not a reward). Differentiate
# $p(x_t \mid c) = \int N(x_t; \alpha_t x_0, \sigma_t^2)\, p(x_0 \mid c)\, dx_0$:
# $$s = \nabla_{x_t} \log p(x_t \mid c) = \frac{\alpha_t \bar x_0 - x_t}{\sigma_t^2},
# \qquad \epsilon_\theta = -\sigma_t\, s$$
# Solved for the mean, this is Tweedie's formula (the paper's Eq. 11):
# $$\bar x_0 = \frac{x_t + \sigma_t^2\, s}{\alpha_t}
# = \frac{x_t - \sigma_t\, \epsilon_\theta}{\alpha_t}$$
# So the predicted noise gives the expected picture. Does it, at each of 50 steps?

# %%
run = dk.Sampler(model, num_steps=50).start(PROMPT, seeds=range(4)).finish()
worst = 0.0
for info in run.history:
    exact = model.x0bar(info.xt, info.t, run.state.cond_org)
    worst = max(worst, (info.x0bar_hat - exact).abs().max().item())
print(f"largest difference between Tweedie's formula and the mean: {worst:.1e}")
assert worst < 1e-10

# %% [markdown]
# ## How does the sampler take a step?
#
# The formula splits $x_t$ into an expected picture and an expected noise,
# $x_t = \alpha_t \bar x_0 + \sigma_t \epsilon_\theta$. DDIM, the solver of this course, puts the
# same two together again at $t'$, the next time, with less noise:
# $$x_{t'} = \alpha_{t'}\, \bar x_0 + \sigma_{t'}\, \epsilon_\theta$$
# Why is that a sensible step? Divide by $\alpha$: with $u = x / \alpha$ and $r = \sigma / \alpha$
# it reads $u_{t'} = u_t + (r_{t'} - r_t)\, \epsilon_\theta$. That is Euler's rule for
# $du / dr = \epsilon_\theta$, the equation whose exact solution carries noise to pictures of
# $p(x_0 \mid c)$.

# %%
for info, after in zip(run.history, run.history[1:]):
    alpha, sigma = run.sampler.solver.level(info.i + 1)  # of a step; model.level takes a time
    # eps_c: the noise that was predicted with the prompt
    torch.testing.assert_close(after.xt, alpha * info.x0bar_hat + sigma * info.eps_c)
print(f"the solver's own {len(run.history) - 1} steps are these, to rounding")
assert after.i == 49

# %% [markdown]
# So $\bar x_0$ is no by-product: each step moves towards it.
#
# ## Could the expected picture come out?
#
# Each row adds noise to the same rare picture, shows $\bar x_0$, and then four draws of
# $p(x_0 \mid x_t, c)$: pictures that really could come out.

# %%
levels, rows, counts = (981, 901, 801, 401), [], {}


def possible(xt, t, n):
    """Draws of p(x0 | xt, c), straight from the formula."""
    return model.sample_posterior(xt.expand(n, -1, -1, -1), t, many(n), range(n))


for t in levels:
    xt = add_noise(rare, t)
    shown = torch.cat([xt, model.x0bar(xt, t, cond), possible(xt, t, 4)])
    rows.append([image.permute(1, 2, 0).numpy() for image in model.decode(shown).clamp(0, 1)])
    counts[t] = kind(possible(xt, t, 1000)).bincount(minlength=4).tolist()
    print(f"t = {t}: of 1000 draws, {counts[t]} are of each kind")
names = [f"t = {t}" for t in levels]
dk.plot.tiles(rows, columns=["xt", "x0bar", *(["possible"] * 4)], rows_named=names)
assert 200 < counts[981][0] < 300
assert 500 < counts[901][0] < 600
assert 950 < counts[801][0] < 1000 == counts[401][0]

# %% [markdown]
# At t = 981 one draw in four is of the orange kind, and $\bar x_0$ is a dull version of the green
# one. At t = 901 it is one in two, and $\bar x_0$ a greyish average of both: no draw looks like it,
# and it could not come out. At t = 801 the orange kind is nearly alone (2 % are of the other), at
# t = 401 alone, and $\bar x_0$ is a smoother version of each draw.
#
# ## Does less noise mean more certainty?
#
# The mean squared distance of possible pictures from $\bar x_0$ says how uncertain one is. For this
# one $x_t$, and on average over 256 pictures with their own noise:

# %%
levels = (981, 951, 901, 851, 801, 701, 601, 401, 201)
pictures, this, average = model.sample(many(256), range(256)), [], []
for t in levels:
    xt, noisy = add_noise(rare, t), add_noise(pictures, t)
    this.append((possible(xt, t, 256) - model.x0bar(xt, t, cond)).square().mean().item())
    average.append((pictures - model.x0bar(noisy, t, many(256))).square().mean().item())
figure, ax = plt.subplots(figsize=(5.4, 3), layout="constrained")
ax.plot(levels, this, "-o", color=dk.plot.COLOURS[0], label="the rare picture above")
ax.plot(levels, average, "--s", color=dk.plot.COLOURS[1], label="average over pictures")
ax.invert_xaxis()
ax.set(xlabel="t (noise falls to the right)", ylabel="mean squared distance to x0bar")
ax.legend(frameon=False)
assert max(this) > 1.2 * this[0]
assert this[-1] < this[0] / 5
assert average == sorted(average, reverse=True)

# %% [markdown]
# On average, yes: the dashed line only falls. But for one picture uncertainty can *rise* as noise
# falls. Ours is of the rare kind; at t = 981 the model bets on the common one, near t = 901 both
# are about equally likely, which is the widest spread of all, and then the truth comes through.
#
# ## What if the network errs?
#
# Tweedie's formula is linear in the noise: an error $\delta$ in $\epsilon_\theta$ moves $\bar x_0$
# by exactly $-\frac{\sigma_t}{\alpha_t}\, \delta$. Let the error be 1 % of the length of
# $\epsilon_\theta$: how much of the length of $\bar x_0$ is that?

# %%
shares = {}
for i in (0, 10, 25, 40, 49):
    info, (alpha, sigma) = run.history[i], run.sampler.solver.level(i)
    delta = torch.randn(info.xt.shape, generator=torch.Generator().manual_seed(i)).double()
    delta *= 0.01 * info.eps_c.norm() / delta.norm()
    moved = run.sampler.solver.x0bar(info.eps_c + delta, info.xt, i) - info.x0bar_hat
    torch.testing.assert_close(moved, -sigma / alpha * delta)
    shares[i] = (moved.norm() / info.x0bar_hat.norm()).item()
    print(f"step {i:2}: sigma / alpha = {sigma / alpha:6.3f}, x0bar is {shares[i]:.2%} wrong")
assert list(shares.values()) == sorted(shares.values(), reverse=True)

# %% [markdown]
# An early $\bar x_0$, and each reward computed from it, is doubtful twice over: the possible
# pictures lie far apart, and errors of the network are magnified.
#
# ## And a trained network?
#
# `shapes` is the small network that ships with the package, and it did learn what circles are.
# What does it expect along one run?

# %%
trained = dk.Sampler(dk.load("shapes"), num_steps=20, guidance_scale=1.0)
drawn = trained.start("a red circle left of a blue square", seeds=[16]).finish()
dk.plot.filmstrip(drawn, labels=["shapes"])
last = drawn.state.xt
far = [((info.x0bar_hat - last).norm() / last.norm()).item() for info in drawn.history]
print(
    "distance to the finished picture, relative to its length, at steps 0, 10 and 19: "
    f"{far[0]:.2f}, {far[10]:.2f}, {far[-1]:.2f}"
)
(verdict,) = dk.shapes.judge(drawn.pixels, drawn.prompts)
print("the oracle sees:", ", ".join(f"a {thing.colour} {thing.shape}" for thing in verdict.things))
assert not any(ok for _, ok in verdict.statements[:3])
assert verdict.statements[3][1]
assert far[0] > far[10] > far[-1]

# %% [markdown]
# The network shows the same course: at first coloured patches without a form, then one picture that
# hardly changes. The oracle (exact image analysis, which knows what a circle is) sees a cyan square
# and a blue circle: two things, as the prompt says, but neither of the two it names. This network
# heeds the words only a little unless one exaggerates what they change. That is *guidance*, which
# is off here: with it, what the solver uses is no mean any more, as the lesson "How does an
# impossible objective become one gradient step?" shows.
#
# ## What held
#
# - The model's $\bar x_0$ is the mean that Bayes asks for, within the error of 4000 draws, and
#   Tweedie's formula gives it from the predicted noise at each of 50 steps.
# - DDIM's step is the expected picture and the expected noise, put together at the next level.
# - Early on several kinds of picture are possible, later one; on average the possible pictures draw
#   together at each level of less noise, though for a single one they may first spread.
# - The same relative error of the network spoils an early $\bar x_0$ most.
# - A trained network's $\bar x_0$ comes closer to its finished picture, too.
#
# ## Exercises
#
# 1. `dk.load("gaussian")` knows one kind of picture only. How wide is the spread at t = 951 and at
#    t = 401 there?
# 2. Add noise to the rare picture up to t = 951 and apply Tweedie's formula to the noise that
#    `model.predict(xt, t, other)` gives under another prompt, "a blue square". Of what is the
#    result the mean?
# 3. Euler's rule errs in proportion to its step. Draw 8 pictures of the prompt (seeds 0 to 7) in
#    50, in 100 and in 500 steps: how far are the first two from the last?
#
# <details><summary>Solutions</summary>
#
# 1. 0.024 and 0.023, where the rare picture has 0.44 and 0.023: what shrinks there is the doubt
#    between kinds.
# 2. Of the pictures possible under that prompt: it equals `model.x0bar(xt, t, other)` to 3e-15, and
#    lies 2.1 times the length of the right $\bar x_0$ away from it.
# 3. 2.2 % and 1.1 % of their length: half the step, half the error.
#
# </details>
