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
# # What does an update cost?
#
# Updating at every step takes several times the time and the memory of plain sampling. Which part
# of it is the network, which the decoder, which the reward? What of it is waste? And what does a
# cheaper decoder save, and what does that cost in accuracy?
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
import os

import matplotlib.pyplot as plt
import pandas as pd
import torch
from IPython.display import Markdown
from studies import bench, cost, decoders, fullsize
from studies.cheap_decoders import Linear
from studies.large import load_large
from studies.results import earlier

import datekit as dk

# %%
MODEL = "shapes"  # or "SD v1.5", on a GPU with the weights at hand
backbone, reward, RHO, PROMPT = load_large(
    MODEL,
    {
        "SD v1.5": lambda: (
            dk.load("stable-diffusion-v1-5/stable-diffusion-v1-5", dtype=torch.float16),
            dk.rewards.CLIPScore("ViT-L-14", "openai"),
            0.5,
            "a red cube left of a blue sphere",
        )
    },
) or (dk.load("shapes"), dk.rewards.load("shapes-clip"), 0.6, "a red circle left of a blue square")
BATCH = 4
results = Path("studies") / "results"
date = dk.DATE(reward, rho=RHO)


def sampler(method=None, **settings):
    """The same run with another method, by default none, and other settings."""
    return dk.Sampler(backbone, method, num_steps=20, **settings)


state = sampler().init([PROMPT] * BATCH, seeds=range(BATCH))
print(f"{backbone.name}, a batch of {BATCH}")

# %% [markdown]
# ## How many operations?
#
# PyTorch counts them as they run: products of matrices, convolutions, attention; two for a
# multiply-add. A plain step runs both branches of the network. An update adds: the conditional
# branch again at the moved embedding, decoder and reward forward, and everything backward as far as
# activations go, as weights are frozen.

# %%
linear = dk.DATE(reward, rho=RHO, decoder=Linear())
kinds = {
    "fixed": lambda: sampler().step(state),
    "updated": lambda: sampler(date).step(state),
    "updated, two graphs": lambda: sampler(date, keep_graph=False).step(state),
    "updated, linear decoder": lambda: sampler(linear).step(state),
    "one graph, unfrozen weights": lambda: cost.plain_step(sampler(), state, reward, RHO),
}
kinds["updated, linear decoder"]()  # the linear decoder is fitted at its first use
counts = {name: cost.flops(call) for name, call in kinds.items()}
for name, count in counts.items():
    print(f"{name:28} {count / 1e9:7.2f} GFLOP, {count / counts['fixed']:.2f} times a plain step")
assert (
    counts["fixed"]
    < counts["updated, linear decoder"]
    < counts["updated"]
    < counts["updated, two graphs"]
)
assert counts["updated"] < counts["one graph, unfrozen weights"]

# %% [markdown]
# The last line is what a straightforward program does: both branches inside the graph, and
# activations kept for gradients of weights that nobody asks for. Operations are not seconds. Where
# does the time go? (Measured by `python -m studies bench`, one process, kinds in turn.)

# %%
measured = json.loads((results / "bench.json").read_text())
rows = measured["phases"]["rows"]
fig, ax = plt.subplots(figsize=(7.5, 2.9), layout="constrained")
left = dict.fromkeys(rows, 0.0)
for n, phase in enumerate(cost.PHASES):
    values = [1000 * row["phases"][phase] for row in rows.values()]
    ax.barh(
        list(rows),
        values,
        left=list(left.values()),
        color=dk.plot.COLOURS[n],
        hatch=("", "//", "..", "xx")[n],
        edgecolor="white",
        label=phase,
    )
    left = {name: start + value for (name, start), value in zip(left.items(), values, strict=True)}
ax.invert_yaxis()
ax.set(xlabel=f"ms, batch {measured['phases']['batch']}")
ax.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
if "DATEKIT_FIGURES" in os.environ:
    fig.savefig(Path(os.environ["DATEKIT_FIGURES"]) / "cost.png", dpi=110)
print(measured["command"], measured["date"], measured["hardware"], sep=", ")
Markdown(bench.markdown(measured).split("\n\n")[1])

# %% [markdown]
# ## Is it still the same update?
#
# All savings but the cheaper decoders leave the gradient as it was. Against one graph of
# everything, the same precision (in half precision the order of sums shows):

# %%
c = state.c.clone().requires_grad_()
h = reward(backbone.decode(sampler().predict(state, c).x0bar), [PROMPT] * BATCH)
expected = torch.autograd.grad(h.sum(), c)[0].flatten(1)
options = {
    "graph kept": {},
    "two graphs": {"keep_graph": False},
    "pictures one at a time": {"decode_batch": 1},
    "samples one at a time": {"keep_graph": False, "micro_batch": 1},
    "... and checkpointing": {"keep_graph": False, "micro_batch": 1, "checkpointing": True},
}

table = {}
for name, settings in options.items():
    held = cost.SavedBytes(backbone)
    with held.hooks():
        info = sampler(date, **settings).step(state)[1]
    grad = info.grad.flatten(1)
    table[name] = {
        "cosine to one graph": torch.nn.functional.cosine_similarity(grad, expected).min().item(),
        "relative difference": ((grad - expected).norm() / expected.norm()).item(),
        "held for backward, MiB": held.peak / 2**20,
    }
held = cost.SavedBytes(backbone)
with held.hooks():
    cost.plain_step(sampler(), state, reward, RHO)
table["one graph, unfrozen weights"] = {"held for backward, MiB": held.peak / 2**20}
table = pd.DataFrame(table).T
assert table["cosine to one graph"].min() > 0.9999
assert table["relative difference"].max() < (1e-4 if backbone.dtype == torch.float32 else 1e-2)
held = table["held for backward, MiB"]
assert (
    held["one graph, unfrozen weights"]
    > held["graph kept"]
    > held["two graphs"]
    > held["samples one at a time"]
)
table.round(6)

# %% [markdown]
# The third column is what autograd keeps between forward and backward, at its highest. Without any
# option set, the network's graph is kept while the reward is differentiated; `keep_graph=False`
# builds it afterwards.
#
# ## Will it fit?
#
# `dk.estimate` walks through a step with tensors that have shapes but no numbers, and so takes no
# memory.

# %%
one, eight = (dk.estimate(backbone, date, batch) for batch in (1, 8))
for batch, found in ((1, one), (8, eight)):
    print(
        f"batch {batch}: weights {found.weights / 2**20:.1f} MiB, a plain step "
        f"{found.plain / 2**20:.1f} MiB more, an updated one {found.updated / 2**20:.1f} MiB"
    )
assert eight.weights == one.weights
assert 7.5 < eight.updated / one.updated < 8.5

# %% [markdown]
# The same count for the published architectures at full size, without a GPU: memory of a step with
# weights but without text encoders, operations as multiples of a plain step's. The reward here is
# next to nothing, so this is network and decoder alone.

# %%
full = json.loads((results / "full-size.json").read_text())
print(full["command"], full["date"], full["hardware"], sep=", ")
Markdown(fullsize.markdown(full))

# %%
share = {}
for row in full["rows"]:
    if "counted" in row and row["batch"] == 4:
        counted = row["counted"]
        share[f"{row['model']}, {row['dtype']}"] = {
            kind: found["GiB"] / counted["plain sampling"]["GiB"] for kind, found in counted.items()
        }
memory = pd.DataFrame(share).T
print(
    "peak memory as a multiple of plain sampling's, batch 4, which is that of decoding its "
    "pictures at the end:"
)
assert memory.empty or (memory["little memory"] <= memory["updated"]).all()
memory.round(2)

# %% [markdown]
# ## Fast, and how wrong?
#
# The reward does not need the decoder's best picture. Here are four ways to a cheaper one, at one
# paused step: what the reward is shown, and how well the direction agrees with the exact one. The
# tiny decoder is the package's own; the others, which need no weights, are of the studies
# (`studies/cheap_decoders.py`).

# %%
run = sampler().start([PROMPT] * BATCH, seeds=range(BATCH))
run.step(8)
exact = run.peek(reward)
pictures, cosines = [backbone.decode(exact.x0bar).clamp(0, 1)], {}
for name, kind in decoders.KINDS.items():
    asked = dk.decoders.through(reward, kind)
    look = run.peek(asked)
    shown = asked.decoder(backbone)(exact.x0bar.float()).detach().clamp(0, 1)
    pictures.append(torch.nn.functional.interpolate(shown, pictures[0].shape[-2:]))
    cosines[name] = torch.nn.functional.cosine_similarity(
        look.grad.flatten(1), exact.grad.flatten(1)
    )
tiles = [[image.permute(1, 2, 0).cpu().numpy() for image in row] for row in pictures]
ax = dk.plot.tiles(tiles, rows_named=["exact", *decoders.KINDS])
for name, values in cosines.items():
    print(
        f"{name:20} cosine of eps_hat to the exact one: {values.mean():.3f} (least "
        f"{values.min():.3f}, {BATCH} samples, step 8)"
    )
assert cosines["linear"].mean() > 0

# %% [markdown]
# Over the whole run, and what it does to quality at equal time (`python -m studies decoders` made
# the file):

# %% tags=["results"]
study = json.loads((results / "decoders.json").read_text())
print(earlier(study) + study["command"], study["date"], study["hardware"], sep=", ")
print(
    f"{study['pairs']} held-out pairs, {study['steps']} steps, rho {study['rho']}; "
    f"cosines over {study['cosine pairs']} of them"
)
Markdown(decoders.markdown(study))

# %%
fig, ax = plt.subplots(figsize=(7, 3), layout="constrained")
for n, (name, row) in enumerate(study["cosine of eps_hat to the exact one"].items()):
    means, low, high = (list(values) for values in zip(*row["by step"], strict=True))
    ax.plot(means, color=dk.plot.COLOURS[n], marker=dk.plot.MARKERS[n], label=name)
    ax.fill_between(range(len(means)), low, high, color=dk.plot.COLOURS[n], alpha=0.2)
ax.axhline(0, color="0.6", linewidth=0.8)
ax.set(
    xlabel="step (0 is the noisiest)",
    ylabel="cosine to the exact direction",
    xticks=range(0, len(means), 4),
)
ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()
seconds = "processor seconds a picture"
for cheap in ("exact", *decoders.EQUAL_TIME):
    row = study["rows"][f"{cheap}, all steps"]
    print(
        f"{cheap}: {row[seconds]:.2f} s a picture; over fixed, held-out "
        f"{row['heldout - fixed'][0]:+.3f}, "
        f"oracle {row['oracle - fixed'][0]:+.3f}"
    )
    assert cheap == "exact" or row[seconds] < study["rows"]["exact, all steps"][seconds]
plain = study["rows"]["fixed"][seconds]
times = {
    name.split(",")[0]: row[seconds] / plain
    for name, row in study["rows"].items()
    if name.endswith(", all steps")
}
tenth = {name: 1 + 0.1 * (x - 1) for name, x in times.items()}
print(
    "times the processor time of plain sampling, all steps updated:",
    {name: round(x, 2) for name, x in times.items()},
)
print(
    "... and a tenth of the steps, by the same figures:",
    {name: round(x, 2) for name, x in tenth.items()},
)

# %% [markdown]
# ## Exercises
#
# 1. From `bench.json`: if the decoder cost nothing, by how much would an updated step still exceed
#    a plain one? Which part is left?
# 2. Which is cheaper on a large model: `keep_graph=False`, or `decode_batch=1` with the graph kept?
#    Look at both columns of the table.
# 3. `dk.DATE(reward, decoder=Resized(0.5))`, from `studies.cheap_decoders`, shows the reward a
#    smaller latent. At which scale does the cosine fall below one half?
#
# <details><summary>Solutions</summary>
#
# 1. Subtract decode, and from backward the difference to the linear decoder's backward: the
#    network's second forward and its backward remain.
# 2. `decode_batch=1` keeps the operations and saves most of the decoder's graph; `keep_graph=False`
#    costs one forward pass more and never holds both graphs.
# 3. `run.peek(dk.decoders.through(reward, Resized(scale)))` for some scales.
#
# </details>
