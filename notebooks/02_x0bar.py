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
# # x0bar, where the answer is known
#
# Everything in this method hangs on one quantity: $\bar x_0(x_t, c)$, the mean of all pictures that
# could still come out. A trained network only approximates it, so here we take a model for which it
# is a formula: $p(x_0 \mid c)$ is a mixture of four Gaussians whose means and weights are smooth,
# curved functions of the text embedding $c$. Then $p(x_t \mid c)$, its score and the posterior mean
# are exact.
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

import matplotlib.pyplot as plt
import torch

import datekit as dk

model = dk.load("gaussian-mixture")
PROMPT, SEED = "a red circle", 0
cond = model.encode([PROMPT])
print(model, "| tokens:", " ".join(cond.tokens[0]))

# %% [markdown]
# ## What does the model draw?
#
# Eight draws of $p(x_0 \mid c)$, straight from the formula, no diffusion involved. Do they look
# alike?


# %%
def many(n):
    """The embedding of the prompt, n times."""
    return dk.Conditioning.cat([cond] * n)


def picture(latent):
    """A latent (1, C, h, w) decoded, (H, W, 3)."""
    return model.decode(latent).clamp(0, 1)[0].permute(1, 2, 0).numpy()


x0 = model.sample(many(8), range(8))
dk.plot.tiles([[picture(x[None]) for x in x0]], columns=[f"draw {n}" for n in range(8)])
print("weights of the modes:", ", ".join(f"{w:.3f}" for w in model.log_weights(cond).exp()[0]))

# %% [markdown]
# Not all of them: the prompt leaves more than one kind of picture possible. Add noise to the odd
# one out, draw 2: $x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1 - \bar\alpha_t}\, \epsilon$. What can
# still be known of $x_0$?
#
# ## The posterior mean, by brute force
#
# Bayes: draw many $x_0$ from the prior and weight each with how well it explains $x_t$. That uses
# neither score nor posterior formula. Does the model's $\bar x_0$ agree, within the error of such
# an estimate?

# %%
T_NOISY, DRAWS = 951, 4000
alpha, sigma = model.level(T_NOISY)
odd = x0[2:3]
noise = torch.randn(odd.shape, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
xt = alpha * odd + sigma * noise
candidates = model.sample(many(DRAWS), range(DRAWS))
weights = (-((xt - alpha * candidates) ** 2).flatten(1).sum(1) / (2 * sigma**2)).softmax(0)
mean = torch.einsum("n,nchw->chw", weights, candidates)
standard_error = torch.einsum("n,nchw->chw", weights**2, (candidates - mean) ** 2).sqrt()
away = ((mean - model.x0bar(xt, T_NOISY, cond)[0]) / standard_error).square().mean().sqrt()
print(
    f"t = {T_NOISY}, {DRAWS} draws: the two differ by {away:.2f} standard errors "
    "(root mean square over the entries)"
)
assert away < 2

# %% [markdown]
# ## Tweedie's formula (Eq. 11)
#
# A denoiser does not know the posterior; it knows the score $s = \nabla_{x_t} \log p(x_t \mid c)$,
# or the noise $\epsilon = -\sqrt{1 - \bar\alpha_t}\, s$. Tweedie says that this is enough:
# $$\bar x_0 = \frac{x_t + (1 - \bar\alpha_t)\, s(x_t, c, t)}{\sqrt{\bar\alpha_t}}$$
# On the left the posterior mean, on the right what the sampler computes. How far apart are they?

# %%
run = dk.Sampler(model, num_steps=50).start(PROMPT, seeds=range(4))
worst = 0.0
for info in run:
    exact = model.x0bar(info.xt, info.t, run.state.cond_org)
    far = (info.x0bar_hat - exact).abs().max().item()
    worst = max(worst, far)
    if info.i % 12 == 0:
        print(f"step {info.i:2}, t = {info.t:3}: largest difference {far:.1e}")
assert worst < 1e-10

# %% [markdown]
# Equal to rounding, at every step.
#
# ## Is x0bar a picture that could come out?
#
# Early on it is an average over several kinds of picture. Each row below noises the same $x_0$ to a
# level, shows $\bar x_0$, and then four draws of $p(x_0 \mid x_t, c)$: pictures that could really
# come out.

# %%
rows, names = [], []
for t in (981, 951, 801, 401):
    alpha, sigma = model.level(t)
    xt = alpha * odd + sigma * noise
    possible = model.sample_posterior(xt.expand(4, -1, -1, -1), t, many(4), range(4))
    rows.append(
        [picture(xt), picture(model.x0bar(xt, t, cond)), *(picture(x[None]) for x in possible)]
    )
    names.append(f"t = {t}")
ax = dk.plot.tiles(rows, columns=["xt", "x0bar", *(["possible"] * 4)], rows_named=names)

# %% [markdown]
# How wide is that set of possible pictures? Its root-mean-square distance from $\bar x_0$, with 256
# draws at each level:

# %%
widths = []
for t in (981, 951, 801, 401):
    alpha, sigma = model.level(t)
    xt = alpha * odd + sigma * noise
    possible = model.sample_posterior(xt.expand(256, -1, -1, -1), t, many(256), range(256))
    squares = (possible - model.x0bar(xt, t, cond)).square().flatten(1).mean(1)
    widths.append(dk.evaluation.bootstrap(squares.tolist()))
    print(f"t = {t}: mean squared distance {widths[-1]}")
assert widths[0].low > widths[-1].high  # certainty grows

# %% [markdown]
# ## What if the score is wrong?
#
# Networks err. Eq. 11 is linear in the score, so an error $\delta$ in the noise prediction moves
# $\bar x_0$ by exactly $-\sqrt{1 - \bar\alpha_t} / \sqrt{\bar\alpha_t} \cdot \delta$. Take $\delta$
# of 1 % of $\lVert \epsilon \rVert$: how much of $\lVert \bar x_0 \rVert$ is that?

# %%
shares = []
for i in (0, 10, 25, 40, 49):
    info, (alpha, sigma) = run.history[i], run.sampler.solver.level(i)
    z = dk.noise.normal(run.seeds, i, info.xt.shape[1:], torch.float64, purpose="error")
    eps = info.eps_c
    delta = 0.01 * z * (eps.flatten(1).norm(dim=1) / z.flatten(1).norm(dim=1)).view(-1, 1, 1, 1)
    wrong = run.sampler.solver.x0bar(eps + delta, info.xt, i) - info.x0bar_hat
    shares.append(
        (wrong.flatten(1).norm(dim=1) / info.x0bar_hat.flatten(1).norm(dim=1)).mean().item()
    )
    print(
        f"step {i:2}: sigma / alpha = {sigma / alpha:8.3f}   "
        f"1 % wrong noise makes x0bar {shares[-1]:.2%} wrong"
    )
    torch.testing.assert_close(wrong, -sigma / alpha * delta)
assert shares[0] > 10 * shares[-1]

# %% [markdown]
# So the same relative error of the network weighs most where the noise is strongest: an early
# $\bar x_0$, and with it every reward computed from it, is the least certain twice over, once
# because the posterior is wide and once because errors are magnified.
#
# ## x0bar along a real trajectory
#
# Now the model that ships, a trained network. When does its expectation settle? The distance of
# $\bar x_0$ from the final latent, beside that of the closed-form model (mean of four samples
# each):

# %%
shapes = dk.load("shapes")
prompts = dk.shapes.prompts("heldout", 4, seed=5, part="tune")
trained = dk.Sampler(shapes).start(prompts, seeds=range(4)).finish()
figure, ax = plt.subplots(figsize=(5.2, 3), layout="constrained")
settled = {}
for n, (name, one) in enumerate({"closed form": run, "shapes": trained}.items()):
    last = one.state.xt
    far = [
        ((info.x0bar_hat - last).flatten(1).norm(dim=1) / last.flatten(1).norm(dim=1)).mean().item()
        for info in one.history
    ]
    settled[name] = far
    ax.plot(
        [info.i for info in one.history],
        far,
        color=dk.plot.COLOURS[n],
        linestyle=dk.plot.STYLES[n],
        label=name,
    )
    print(
        f"{name:12} first step {far[0]:.3f}, step 10 {far[10]:.3f}, "
        f"step 25 {far[25]:.3f}, last {far[-1]:.3f}"
    )
ax.set(xlabel="step (0 is the noisiest)", ylabel="||x0bar - x0|| / ||x0||")
ax.legend(frameon=False)
assert all(far[0] > 5 * far[-1] for far in settled.values())

# %%
ax = dk.plot.filmstrip(trained, sample=0, labels=["fixed"])

# %% [markdown]
# ## Exercises
#
# 1. `dk.load("gaussian")` has one mode. Repeat "Is x0bar a picture that could come out?" with it.
#    What changes at `t = 951`?
# 2. Tweedie needs the *conditional* score. Feed the embedding of another prompt to `model.predict`
#    and apply Eq. 11. Of what is the result the mean?
# 3. With guidance, `dk.Sampler(model, guidance_scale=4)`, compare `info.x0bar_hat` with
#    `model.x0bar`. Is the guided x0bar still a posterior mean?
#
# <details><summary>Solutions</summary>
#
# 1. With one mode the posterior is one Gaussian: $\bar x_0$ is its peak and looks like the draws,
#    only smoother. Averaging over *kinds* of picture needs several modes.
# 2. Of the posterior under the other prompt, $E[x_0 \mid x_t, c']$: `model.x0bar(xt, t, other)`.
#    The same $x_t$ is explained by other pictures.
# 3. No. Guidance replaces the score by $s_u + w (s_c - s_u)$, which belongs to no model
#    $p(x_0 \mid c)$ that was noised; Eq. 11 then gives a point beyond the conditional mean, and the
#    difference to `model.x0bar` is far above rounding.
#
# </details>
