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
# # SoftREPA: soft tokens learnt by contrast
#
# DATE moves the text embedding while a picture forms, along the gradient of a reward. SoftREPA
# ([arXiv 2503.08250](https://arxiv.org/abs/2503.08250)) spends its gradients beforehand: a handful
# of text tokens, the same for every prompt, is trained so that the frozen denoiser tells right
# captions from wrong ones. What does that loss look like on one batch, what does it buy on held-out
# prompts, and does it add to DATE?
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

import json
import math
import time

import matplotlib.pyplot as plt
import pandas as pd
import torch
from IPython.display import Markdown
from studies import softrepa_sweep
from studies.results import earlier

import datekit as dk
import datekit.plot  # from here on figures carry their text alternative
from datekit.methods.soft_tokens import shipped_file
from datekit.methods.softrepa import place

# %%
FULL = False  # True trains for as many steps as the tokens that ship were trained
MODEL = "shapes"  # or "shapes-flow"; on a GPU a hub id, with PAIRS a folder of images and captions
PAIRS = None
SCENES = 64 if not FULL else 1000
backbone = dk.load(MODEL)
pairs = dk.softrepa.read_pairs(PAIRS) if PAIRS else softrepa_sweep.shapes_pairs(SCENES, seed=11)
print(
    f"{MODEL}: {len(pairs)} captioned images, latents {backbone.latent_shape()}; for example: "
    f"{pairs.captions[0]!r}"
)

# %% [markdown]
# ## The loss by hand, on one batch
#
# Four images, their four captions, **one** noise and **one** timestep for all sixteen pairs. Each
# pair gets an error: how badly does the model denoise image $i$ when it is told caption $j$? Right
# captions stand on the diagonal.

# %%
T, B = 600, 4
rows = [pairs.captions.index(text) for text in dict.fromkeys(pairs.captions)][:B]
captions = [pairs.captions[n] for n in rows]
x0, square = pairs.latents(backbone, rows), torch.arange(B).expand(B, B)
noise = torch.randn(1, *x0.shape[1:], generator=torch.Generator().manual_seed(0)).to(x0)
with torch.no_grad():
    texts = backbone.encode(captions)
    errors = dk.softrepa.denoising_errors(backbone, x0, texts, square, noise, T).cpu()
xt, target = dk.softrepa.add_noise(backbone, x0[:1], noise, T)
with torch.no_grad():  # one of them written out
    out = backbone.predict(xt, T, backbone.encode(captions[1:2]))
by_hand = (out - target).square().mean().item()
print(f"t = {T}: image 0 under caption 1 has error {errors[0, 1]:.4f}, written out {by_hand:.4f}")
assert abs(by_hand / errors[0, 1].item() - 1) < 1e-3

# %% [markdown]
# Errors become logits, $l_{ij} = 4\,e^{-e_{ij}/0.07}$, and the loss asks each row to find its
# diagonal: $-\frac1B\sum_i \log \mathrm{softmax}_j(l_i)_i$.

# %%
contrast, own = dk.softrepa.Contrast(), torch.arange(B)
logits = 4 * torch.exp(-errors / 0.07)
chances = logits.softmax(1)
loss = -chances.diagonal().log().mean().item()
fig, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
for ax, values, title in zip(
    axes,
    (errors, logits, chances),
    ("errors $e_{ij}$", "logits $l_{ij}$", "softmax over captions"),
    strict=True,
):
    ax.imshow(values, cmap="viridis")
    ax.set(title=title, xlabel="caption", ylabel="image", xticks=range(B), yticks=range(B))
    for i in range(B):
        for j in range(B):
            dark = values[i, j] < (values.min() + values.max()) / 2
            ax.text(
                j,
                i,
                f"{values[i, j]:.3f}",
                ha="center",
                va="center",
                color="white" if dark else "black",
                fontsize=8,
            )
plt.show()
for n, text in enumerate(captions):
    print(n, text)
print(
    f"loss by hand {loss:.4f}, of the library {contrast.loss(errors, own):.4f}; guessing would be "
    f"log {B} = {math.log(B):.4f}"
)
assert abs(loss - contrast.loss(errors, own).item()) < 1e-5

# %% [markdown]
# ## What does sharpening mean?
#
# Why the exponential? Errors differ far more between timesteps than between captions. Raw logits
# $-e/0.07$ pull with the same force at every error. With the exponential the pull is largest where
# the model denoises well and fades where it does not, and a logit never leaves $[0, 4]$.

# %%
grid = torch.logspace(-2.5, 0, 200).requires_grad_()
sharp, raw = contrast.logits(grid), dk.softrepa.Contrast(exponential=False).logits(grid)
pulls = {
    name: -torch.autograd.grad(values.sum(), grid, retain_graph=True)[0]
    for name, values in (("exponential", sharp), ("raw", raw))
}
seen = {}
with torch.no_grad():
    for t in (100, 300, 500, 700, 900):
        seen[t] = (
            dk.softrepa.denoising_errors(backbone, x0, texts, square, noise, t)
            .diagonal()
            .mean()
            .item()
        )
fig, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
axes[0].plot(grid.detach(), sharp.detach(), label="exponential")
axes[0].plot(grid.detach(), raw.detach(), "--", label="raw")
axes[0].set(xlabel="error e", ylabel="logit", ylim=(-10, 4.5))
axes[0].legend()
for (name, pull), style in zip(pulls.items(), ("-", "--"), strict=True):
    axes[1].plot(grid.detach(), pull, style, label=name)
for n, (t, error) in enumerate(seen.items()):
    axes[1].axvline(error, color="grey", lw=0.8)
    axes[1].annotate(f"t={t}", (error, 50 - 7 * n), fontsize=7)
axes[1].set(xlabel="error e", ylabel="pull, - dl/de", xscale="log")
axes[1].legend(loc="lower left")
plt.show()
print(
    "mean error of right captions:", ", ".join(f"t = {t}: {error:.3f}" for t, error in seen.items())
)
assert pulls["exponential"].max() <= 4 / 0.07 + 1e-3
assert sharp.min() >= 0

# %% [markdown]
# ## Train
#
# Only the tokens have gradient: four vectors here, after the start token of the text, in the
# cross-attention of the down blocks (or before the text in the first blocks of a joint
# transformer). Does the model stay as it was, to the bit?

# %%
before = [value.clone() for value in backbone.network.state_dict().values()]
STEPS, began = 500 if FULL else 20, time.process_time()
tokens = dk.softrepa.train(backbone, pairs, steps=STEPS, lr=1e-2, seed=0)
curve = pd.DataFrame(tokens.config["curve"]).set_index("step")
unchanged = all(
    torch.equal(a, b) for a, b in zip(before, backbone.network.state_dict().values(), strict=True)
)
learnt = sum(x.numel() for x in tokens.numbers.values())
print(f"{tokens}: {learnt} parameters, {STEPS} steps; network unchanged: {unchanged}")
assert unchanged
assert FULL or time.process_time() - began < 240  # two minutes of two cores
assert curve.index[-1] == STEPS

# %% [markdown]
# The tokens that ship come from the full budget. Trained with other settings, which ones are
# better? The table below was measured by the command it names; the settings were compared on tuning
# prompts, each against the same fixed embedding on the same noise.

# %% tags=["results"]
RESULTS = Path("studies") / "results"
name = {"shapes": "softrepa-shapes.json", "shapes-flow": "softrepa-flow.json"}.get(MODEL, "none")
found = json.loads((RESULTS / name).read_text()) if (RESULTS / name).is_file() else None


def interval(row, what, form="+.3f"):
    """The paired difference to the fixed embedding, and its interval."""
    return "{:{f}} [{:{f}}, {:{f}}]".format(*row[f"{what} - fixed"], f=form)


if found is None:
    print(f"no results for {MODEL}; `python -m studies softrepa` makes them")
else:
    print(
        f"{earlier(found)}{found['command']}\n"
        f"{found['date']}, {found['hardware']}, {found['tuning_pairs']} pairs, "
        f"{found['steps']} sampling steps"
    )
    shown = [
        {
            "setting": n,
            "held-out reward - fixed": interval(row, "heldout"),
            "oracle - fixed": interval(row, "oracle", "+.1%"),
        }
        for n, row in found["tuning"].items()
        if n != "fixed"
    ]
    print(pd.DataFrame(shown).set_index("setting").to_string())
    chosen = found["chosen by the held-out reward on tuning prompts"]
    print(f"chosen by the held-out reward: {chosen}")
    assert found["tuning"][chosen]["heldout"][0] == max(
        row["heldout"][0] for n, row in found["tuning"].items() if n != "fixed"
    )


# %%
def bars(ax, table, what, skip=("fixed",)):
    """Paired differences to the fixed embedding with their intervals."""
    names = [n for n in table if n not in skip]
    for y, n in enumerate(names):
        mean, low, high = table[n][f"{what} - fixed"]
        ax.errorbar(
            mean,
            y,
            xerr=[[mean - low], [high - mean]],
            fmt="o",
            color="C0" if low > 0 else "C3" if high < 0 else "grey",
            capsize=3,
        )
    ax.axvline(0, color="black", lw=0.8)
    ax.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
    return ax


if found is not None:
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    for ax, what, title in zip(
        axes, ("heldout", "oracle"), ("held-out reward", "share right by the oracle"), strict=True
    ):
        bars(ax, found["tuning"], what).set_xlabel(f"{title}, difference to fixed, 95 %")
    plt.show()

# %% [markdown]
# What does the exponential change? The contrastive loss of the base and of the same training with
# raw logits, both models, as the sweep logged them. Batches differ in timestep, and raw logits
# follow the errors to any size:

# %%
sweeps = {
    f"{m}": json.loads((RESULTS / f"softrepa-{m}.json").read_text()) for m in ("shapes", "flow")
}
fig, axes = plt.subplots(1, 2, figsize=(9, 2.8), sharey=True, layout="constrained")
for ax, (kind, content) in zip(axes, sweeps.items(), strict=True):
    swings = {}
    for n, (setting, label) in enumerate({"base": "exponential", "raw logits": "raw"}.items()):
        line = pd.DataFrame(content["tuning"][setting]["curve"])
        ax.plot(
            line["step"],
            line["entropy"],
            color=dk.plot.COLOURS[n],
            linestyle=("-", "--")[n],
            label=label,
        )
        swings[label] = line["entropy"].std()
    ax.set(
        title=content["model"],
        xlabel="training step",
        ylabel="contrastive loss" if kind == "shapes" else "",
    )
    print(
        f"{content['model']}: standard deviation of the loss {swings['exponential']:.3f} with the "
        f"exponential, {swings['raw']:.3f} raw; "
        "oracle against fixed",
        " and ".join(
            interval(content["tuning"][setting], "oracle", "+.1%")
            for setting in ("base", "raw logits")
        ),
    )
    assert swings["raw"] > swings["exponential"]
axes[0].legend(frameon=False)
plt.show()

# %% [markdown]
# ## Does it help? Soft tokens, DATE, both, at equal cost
#
# The chosen setting, trained for longer, on test prompts that nothing was chosen on. Soft tokens
# cost almost nothing while sampling; DATE pays with gradients. So the last two rows spend on more
# steps what DATE spends on gradients.

# %% tags=["results"]
if found is not None:
    table = [
        {
            "method": n,
            "held-out reward": row["heldout"][0],
            "- fixed": "" if n == "fixed" else interval(row, "heldout"),
            "oracle": f"{row['oracle'][0]:.1%}",
            "oracle - fixed": "" if n == "fixed" else interval(row, "oracle", "+.1%"),
            "processor s / picture": row["processor seconds a picture"],
        }
        for n, row in found["rows"].items()
    ]
    print(
        f"{found['pairs']} pairs, seed {found['seed']}, guidance {found['guidance_scale']:g}; "
        f"DATE: rho {found['rho']}, every "
        f"{found['DATE every']} steps"
    )
    print(pd.DataFrame(table).set_index("method").to_string())
    mean, low, high = found["rows"]["SoftREPA"]["heldout - fixed"]
    says = "improves" if low > 0 else "lowers" if high < 0 else "does not measurably change"
    print(f"SoftREPA {says} the held-out reward: {mean:+.4f} [{low:+.4f}, {high:+.4f}]")
    assert found["pairs"] >= 300
    assert low <= mean <= high

# %%
if found is not None:
    fig, axes = plt.subplots(1, 2, figsize=(9, 2.6), sharey=True, layout="constrained")
    for ax, what, title in zip(
        axes, ("heldout", "oracle"), ("held-out reward", "share right by the oracle"), strict=True
    ):
        bars(ax, found["rows"], what).set_xlabel(f"{title}, difference to fixed, 95 %")
    plt.show()

# %% [markdown]
# ## Counting
#
# The paper reports that SoftREPA loses counting. Here an oracle counts: "two red circles" and
# "three blue stars" are right when exactly as many are there.

# %% tags=["results"]
if found is not None:
    fixed, soft = found["counting"]["fixed"], found["counting"]["SoftREPA"]
    mean, low, high = soft["oracle - fixed"]
    says = (
        "falls, as the paper says"
        if high < 0
        else "rises, against the paper"
        if low > 0
        else "shows no clear change"
    )
    print(
        f"counted right: fixed {fixed['oracle'][0]:.1%}, SoftREPA {soft['oracle'][0]:.1%}; "
        f"{mean:+.1%} [{low:+.1%}, {high:+.1%}]: counting {says}"
    )
    assert low <= mean <= high

# %% [markdown]
# ## And on the other model?
#
# The same sweep, whole.

# %%
other = RESULTS / {"shapes": "softrepa-flow.json"}.get(MODEL, "softrepa-shapes.json")
second = json.loads(other.read_text())
mean, low, high = second["rows"]["SoftREPA"]["heldout - fixed"]
says = "improves" if low > 0 else "lowers" if high < 0 else "does not measurably change"
print(
    f"{second['model']}: SoftREPA {says} the held-out reward: {mean:+.4f} [{low:+.4f}, "
    f"{high:+.4f}]; {second['command']}"
)
assert second["pairs"] >= 300
Markdown(softrepa_sweep.markdown(second))

# %% [markdown]
# ## In use
#
# Tokens are a method like any other: installed for a step and removed again, and they add up with
# DATE. Same noise, three ways:

# %%
reward = dk.rewards.load("shapes-clip")
shipped = (
    dk.softrepa.load(MODEL) if shipped_file(MODEL).is_file() else tokens
)  # where none ship, the few steps above
prompts = dk.shapes.prompts("heldout", 3, seed=4, part="test")
size = backbone.encode(prompts).sequence.flatten(1).norm(dim=1).mean().item()
date = dk.DATE(reward, rho=size / 64, when=dk.every(4))
methods = {
    "fixed": dk.Fixed(),
    "SoftREPA": dk.SoftREPA(shipped),
    "SoftREPA + DATE": dk.SoftREPA(shipped) + date,
}
runs = {
    name: dk.Sampler(backbone, method, num_steps=20).start(prompts, seeds=[0, 1, 2]).finish()
    for name, method in methods.items()
}
fig, axes = plt.subplots(len(runs), 3, figsize=(6, 6.4), layout="constrained")
for line, (name, run) in zip(axes, runs.items(), strict=True):
    for ax, image, verdict in zip(
        line, run.images, dk.shapes.judge(run.pixels, prompts), strict=True
    ):
        ax.imshow(image)
        ax.set(xticks=[], yticks=[], title="right" if verdict.right else "wrong")
    line[0].set_ylabel(name)
plt.show()
print(*prompts, sep="\n")
again = dk.Sampler(backbone, num_steps=20).start(prompts, seeds=[0, 1, 2]).finish()
assert torch.equal(again.state.xt, runs["fixed"].state.xt)  # nothing stays behind

# %% [markdown]
# ## A reading of the loss: mutual information
#
# With $K$ captions of which one belongs to the image, $I(x; y) \ge \log K - \mathcal L$ (InfoNCE):
# the loss says how much the model, as a critic, knows of which caption goes with which image. The
# bound can never exceed $\log K$, and logits within $[0, 4]$ cap it a little lower. At which noise
# levels is the knowledge, and do the soft tokens add to it? Scenes that training never saw, held
# against the captions of the other images of their batch.

# %%
K, LEVELS = 8, (100, 300, 500, 700, 900)
fresh = pairs if PAIRS else softrepa_sweep.shapes_pairs(64, seed=12)
plan = dict(batch=K, seed=5)
estimate, more = {"without tokens": [], "with tokens": []}, []
for t in LEVELS:
    batches = [
        dk.softrepa.Batch.draw(fresh, dk.softrepa.Plan(**plan, t_range=(t, t + 1)), number)
        for number in range(4)
    ]
    each = {}
    for name, soft in (
        ("without tokens", shipped.replace(tokens=shipped.tokens[:, :0])),
        ("with tokens", shipped),
    ):
        each[name] = []
        for draw in batches:
            with torch.no_grad(), place(backbone, soft, t):
                x0, texts = fresh.latents(backbone, draw.images), backbone.encode(draw.texts)
                e = dk.softrepa.denoising_errors(backbone, x0, texts, draw.columns, noise, t).cpu()
            each[name] += [
                (math.log(K) - contrast.entropy(e[n : n + 1], draw.positive[n : n + 1])).item()
                for n in range(len(e))
            ]
        estimate[name].append(sum(each[name]) / len(each[name]))
    more.append(dk.evaluation.bootstrap(each["with tokens"], minus=each["without tokens"]))
ceiling = math.log(K) - math.log(1 + (K - 1) * math.exp(-4))
table = pd.DataFrame(estimate, index=pd.Index(LEVELS, name="t")).round(4)
with_intervals = table.assign(**{"tokens add, 95 %": [str(value) for value in more]})
ax = table.plot(
    style="o-",
    figsize=(5, 3),
    ylabel="nats",
    title=f"InfoNCE estimate, K = {K}, {8 * len(batches)} images",
)
ax.axhline(0, color="black", lw=0.8)
plt.show()
print(
    f"seed 5, {8 * len(batches)} images a level; at most {ceiling:.3f} with logits in [0, 4], log "
    f"{K} = {math.log(K):.3f}"
)
print(with_intervals.to_string())
assert table.to_numpy().max() <= ceiling <= math.log(K)

# %% [markdown]
# The exponential makes it a humble estimate: where errors are large against 0.07, all logits are
# near 0 and the estimate is near 0, whatever the model knows. It is a bound on what this critic
# tells apart, not the mutual information itself.
#
# ## Exercises
#
# 1. Train with `contrast=dk.softrepa.Contrast(exponential=False)`. How does the loss curve differ
#    in its swings?
# 2. Load published tokens: `dk.softrepa.load("dc_tokens.pth")` for Stable Diffusion. Which shape
#    does each family expect?
# 3. Give the tokens to the first half of the steps alone:
#    `dk.SoftREPA(shipped, when=dk.steps(range(10)))`. How much of their effect is there already?
#
# <details><summary>Solutions</summary>
#
# 1. `pd.DataFrame(dk.softrepa.train(backbone, pairs, steps=100, lr=1e-2,
#    contrast=...).config["curve"]).plot(x="step", y="loss")`; raw logits pull just as hard at the
#    noisiest steps, where errors say little about captions.
# 2. (layers, tokens, width) for SD3, (tokens, width) for SD v1.5 and SDXL; `tokens.layers` says
#    where they stand.
# 3. Compare `run.rewards(reward)[-1]` of the run with that of `dk.Fixed()` and of all steps.
#
# </details>
