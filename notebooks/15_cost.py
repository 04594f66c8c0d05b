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
# A DATE step asks the model more than a plain step does: it needs the gradient of a reward with
# respect to the text embedding. How many operations is that, and how much memory? Which part is the
# network, which the decoder? What can be saved without changing the gradient, and what does a
# cheaper gradient lose?
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

import matplotlib.pyplot as plt
import pandas as pd
import torch
from studies import cost, decoders
from studies.large import load_large
from torch.nn.functional import cosine_similarity

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
prompts = [PROMPT] * BATCH
date = dk.DATE(reward, rho=RHO)


def sampler(method=None, **settings):
    """A run of 20 steps with a method, by default none."""
    return dk.Sampler(backbone, method, num_steps=20, **settings)


state = sampler().init(prompts, seeds=range(BATCH))
print(f"{backbone.name}, {reward.name}, a batch of {BATCH}")

# %% [markdown]
# ## Predict before you measure
#
# Let $N$ be the operations of the network for one branch of guidance, $D$ those of the decoder and
# $R$ those of the reward. A plain step runs both branches: $2N$. An update runs, in turn,
#
# - both branches, to get $\bar x_0(x_t, c)$: $2N$;
# - decoder and reward, forward: $D + R$;
# - the gradient back through reward and decoder to $\bar x_0$: about $D + R$ again. In training a
#   backward pass costs twice the forward pass, because it makes a gradient for the weights too.
#   Here weights are frozen, and only the gradient of what flows through is made;
# - the gradient back from $\bar x_0$ to $c$: about $N$, as the unconditional branch does not depend
#   on $c$;
# - the conditional branch once more, at the moved embedding: $N$.
#
# Together $4N + 2(D + R)$. (A model with one branch, such as FLUX, takes $N$ for a plain step and
# $3N + 2(D + R)$ for an update.) PyTorch can count operations as they run (products of matrices,
# convolutions, attention; a multiply-add is two). Is the prediction right?

# %%
pixels = backbone.decode(state.xt)
N = cost.flops(lambda: backbone.predict(state.xt, state.t, state.cond))
D = cost.flops(lambda: backbone.decode(state.xt))
R = cost.flops(lambda: reward(pixels, prompts))
plain = cost.flops(lambda: sampler().step(state))
updated = cost.flops(lambda: sampler(date).step(state))
print(f"N {N / 1e9:.2f}, D {D / 1e9:.2f}, R {R / 1e9:.2f} GFLOP")
print(f"plain step:   predicted {2 * N / 1e9:.2f}, counted {plain / 1e9:.2f} GFLOP")
predicted = 4 * N + 2 * (D + R)
print(f"updated step: predicted {predicted / 1e9:.2f}, counted {updated / 1e9:.2f} GFLOP")
print(f"an updated step is {updated / plain:.2f} plain ones")
assert abs(plain / (2 * N) - 1) < 0.01
assert abs(updated / predicted - 1) < 0.1

# %% [markdown]
# ## Where do the operations go?
#
# Three programs, all with the same gradient. The middle one forgets the network's graph after
# $\bar x_0$ and makes it again when it is needed ("two graphs", `keep_graph=False`). The last one
# is what one would write down first: one graph of everything, with weights that ask for a gradient
# although nobody uses it, so that the unconditional branch is in the graph too.


# %% tags=["figure cost"]
def one_graph():
    """An updated step with weights that are not frozen."""
    return cost.plain_step(sampler(), state, reward, RHO)


totals = {
    "plain": plain,
    "updated": updated,
    "updated, two graphs": cost.flops(lambda: sampler(date, keep_graph=False).step(state)),
    "one graph, unfrozen": cost.flops(one_graph),
}
branches = dict(zip(totals, (2, 3, 4, 4), strict=True))  # of the network, forward
fig, ax = plt.subplots(figsize=(7, 2.4), layout="constrained")
for n, (name, total) in enumerate(totals.items()):
    decoded = 0 if name == "plain" else D + R
    parts = [branches[name] * N, decoded, total - branches[name] * N - decoded]
    for k, part in enumerate(parts):
        style = {"color": dk.plot.COLOURS[k], "hatch": ("", "//", "..")[k], "edgecolor": "white"}
        ax.barh(n, part / 1e9, left=sum(parts[:k]) / 1e9, **style)
for k, name in enumerate(("network, forward", "decoder and reward, forward", "all of backward")):
    ax.barh(0, 0, color=dk.plot.COLOURS[k], hatch=("", "//", "..")[k], label=name)
ax.set_yticks(range(len(totals)), totals)
ax.invert_yaxis()
ax.set_xlabel(f"GFLOP of one step, batch {BATCH}")
ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()
assert abs(totals["updated, two graphs"] - updated - N) < 0.01 * N
assert totals["one graph, unfrozen"] > totals["updated, two graphs"] > updated

# %% [markdown]
# Making the graph twice costs exactly one more branch of the network. The first program that comes
# to mind costs more than either.
#
# Operations are not seconds: small operations, and those that move numbers without computing, take
# time that nobody counts. Measured once on an idle machine (`python -m studies bench`):

# %%
bench = json.loads((Path("studies") / "results" / "bench.json").read_text())
print(bench["date"], bench["hardware"], f"batch {bench['phases']['batch']}", sep=", ")
times = pd.DataFrame(bench["phases"]["rows"]).T[["operations / plain", "CPU time / plain"]]
assert (times["CPU time / plain"] >= times["operations / plain"]).all()
times.astype(float).round(2)

# %% [markdown]
# Updates take more of the time than of the operations: every ratio on the right is at least that on
# the left.
#
# ## What does memory cost?
#
# For the gradient, PyTorch keeps what each operation will need on the way back. The chain rule has
# two halves, $\nabla_c h = (\partial \bar x_0 / \partial c)^\top\, \nabla_{\bar x_0} h$, and so the
# decoder's half may be finished before the network's half is made. Further ways: decode one picture
# after the other (`decode_batch`), take one sample after the other (`micro_batch`), make parts of
# the graph again on the way back (`checkpointing`). Is the gradient still the same?

# %%
c = state.c.clone().requires_grad_()
h = reward(backbone.decode(sampler().predict(state, c).x0bar), prompts)
expected = torch.autograd.grad(h.sum(), c)[0]
options = {
    "as it comes": {},
    "one picture at a time": {"decode_batch": 1},
    "two graphs": {"keep_graph": False},
    "one sample at a time": {"keep_graph": False, "micro_batch": 1},
    "... and checkpointing": {"keep_graph": False, "micro_batch": 1, "checkpointing": True},
}
table, differences = {}, []
for name, settings in options.items():
    held = cost.SavedBytes(backbone)
    with held.hooks():
        grad = sampler(date, **settings).step(state)[1].grad
    table[name] = {
        "operations / plain": cost.flops(lambda s=settings: sampler(date, **s).step(state)) / plain,
        "held for backward, MiB": held.peak / 2**20,
    }
    differences.append(((grad - expected).norm() / expected.norm()).item())
held = cost.SavedBytes(backbone)
with held.hooks():
    one_graph()
unfrozen = totals["one graph, unfrozen"] / plain, held.peak / 2**20
table = pd.DataFrame(table).T
tolerance = 1e-4 if backbone.dtype == torch.float32 else 1e-2
print("every gradient is that of one graph, to rounding:", max(differences) < tolerance)
assert max(differences) < tolerance
table.round(2)

# %%
fig, ax = plt.subplots(figsize=(6, 3), layout="constrained")
for n, (name, row) in enumerate([*table.iterrows(), ("one graph, unfrozen", unfrozen)]):
    operations, memory = list(row)[:2]
    ax.plot(operations, memory, dk.plot.MARKERS[n], color="black", fillstyle="none", label=name)
ax.set(xlabel="operations, in plain steps", ylabel="held for backward (MiB)", ylim=(0, None))
ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()
memory = table["held for backward, MiB"]
assert unfrozen[1] > memory["as it comes"] > memory["two graphs"]
assert memory["one picture at a time"] < 0.6 * memory["as it comes"]
assert memory["two graphs"] > memory["one sample at a time"]
assert table["operations / plain"].idxmax() == "... and checkpointing"

# %% [markdown]
# Down and to the left is better. Freezing weights saves both and so is always done. Then decoding
# one picture at a time halves what is held and adds no operation, so by itself it is better than
# two graphs on both axes; two graphs pay together with one sample at a time. The rest is paid for
# in operations. None of it is paid for in accuracy: the gradient stays the same.
#
# ## Will it fit?
#
# `dk.estimate` walks through a step with tensors that have shapes and no numbers, so it takes no
# memory to ask.

# %%
found = {batch: dk.estimate(backbone, date, batch) for batch in (1, 4, 8)}
for batch, size in found.items():
    print(
        f"batch {batch}: weights {size.weights / 2**20:.1f} MiB, a plain step "
        f"{size.plain / 2**20:.1f} MiB more, an updated one {size.updated / 2**20:.1f} MiB more"
    )
assert found[1].weights == found[8].weights
assert abs(found[8].updated / found[1].updated / 8 - 1) < 0.1

# %% [markdown]
# Memory grows with the batch, weights do not. The same count for large models at their published
# size, one picture in bfloat16, without text encoders and with a reward that is next to nothing
# (plain sampling: with decoding the picture at its end; little memory: two graphs, one sample at a
# time, checkpointing):

# %%
full = json.loads((Path("studies") / "results" / "full-size.json").read_text())
rows = {
    row["model"]: row["counted"]
    for row in full["rows"]
    if "counted" in row and (row["dtype"], row["batch"]) == ("bf16", 1)
}
kinds = ("plain sampling", "updated", "two graphs", "little memory")
sizes = pd.DataFrame(
    {name: {kind: row[kind]["GiB"] for kind in kinds} for name, row in rows.items()}
)
times = {name: row["updated"]["TFLOP"] / row["fixed"]["TFLOP"] for name, row in rows.items()}
sizes = sizes.T.add_suffix(", GiB").assign(**{"updated / plain, operations": times})
assert (sizes["updated, GiB"] > sizes["plain sampling, GiB"]).all()
assert (sizes["little memory, GiB"] < sizes["two graphs, GiB"]).all()
sizes.round(1)

# %% [markdown]
# Operations relative to a plain step depend on the share of the decoder. On SD v1.5, whose network
# is small for its pictures, the decoder is most of an update, and an update costs five plain steps;
# on the others it is less.
#
# ## What does a cheaper decoder lose?
#
# On this model the decoder is half of an update, and a reward may not need its best picture. Four
# cheaper ways: the latent shrunk to a half or a quarter before it is decoded, a linear map fitted
# to the decoder, and a small network trained for it ("tiny"). They change the gradient. The measure
# is the cosine of its direction to the exact one, for eight prompts on the way with a fixed
# embedding.

# %%
texts = prompts * 2 if MODEL != "shapes" else dk.shapes.prompts("heldout", 8, seed=5, part="tune")
run = sampler().start(texts, seeds=range(8))
cosines, gains = {name: [] for name in decoders.KINDS}, {}
STEPS, SMALL = (2, 8, 14, 19), 0.02
for step in STEPS:
    run.step(step - run.state.i)
    exact = run.peek(reward)
    for name, kind in decoders.KINDS.items():
        look = run.peek(dk.decoders.through(reward, kind))
        cosine = cosine_similarity(look.grad.flatten(1), exact.grad.flatten(1))
        cosines[name].append(dk.evaluation.bootstrap(cosine.tolist()))
        if step == 8:
            gain = run.peek(reward, exact.c + SMALL * look.direction).h - exact.h
            promised = SMALL * exact.grad_norm * cosine
            gains[name] = (1000 * promised).tolist(), (1000 * gain).tolist()

# %% [markdown]
# What is a cosine worth? Move $c$ by a short way $\rho$ along a unit vector $u$: to first order the
# exact reward gains
# $$\rho\, u^\top \nabla_c h = \rho\, \lVert \nabla_c h \rVert\, \cos(u, \nabla_c h)$$
# so a direction at cosine 0.9 buys nine tenths of what the exact one buys. Left the cosines; right
# each prompt's measured gain at step 8 against this prediction.

# %%
fig, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained")
for n, name in enumerate(decoders.KINDS):
    means, low, high = (torch.tensor(column) for column in zip(*cosines[name], strict=True))
    style = {"color": dk.plot.COLOURS[n], "marker": dk.plot.MARKERS[n]}
    at = torch.tensor(STEPS) + 0.2 * n - 0.3
    left.errorbar(at, means, torch.stack([means - low, high - means]), capsize=2, **style)
    right.plot(*gains[name], linestyle="none", label=name, **style)
left.axhline(0, color="0.6", linewidth=0.8)
left.set(xlabel="step (0 is the noisiest)", ylabel="cosine to the exact gradient", xticks=STEPS)
right.axline((0, 0), slope=1, color="0.6", linewidth=0.8)
right.set(xlabel="predicted gain, thousandths of h", ylabel="measured gain, thousandths of h")
right.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()
pairs = torch.tensor([pair for xy in gains.values() for pair in zip(*xy, strict=True)])
agreement = torch.corrcoef(pairs.T)[0, 1].item()
tiny = [row.mean for row in cosines["tiny"]]
others = [max(rows[n].mean for name, rows in cosines.items() if name != "tiny") for n in range(4)]
cheap = cost.flops(lambda: sampler(dk.DATE(reward, RHO, decoder="tiny")).step(state)) / plain
print(
    f"cosines of tiny {min(tiny):.2f} to {max(tiny):.2f}, of the others at most {max(others):.2f}"
)
print(f"predicted and measured gain: correlation {agreement:.3f}")
print(f"an update through the tiny decoder: {cheap:.2f} plain steps")
assert agreement > 0.9
assert cheap < updated / plain
if backbone.name == "shapes":
    assert all(a > b for a, b in zip(tiny, others, strict=True))
    unsure = [sum(r.low < 0 < r.high for r in row) for row in cosines.values()]
    assert unsure == [3, 4, 4, 0]  # intervals, of 4, that hold zero

# %% [markdown]
# Only the decoder that was trained for it points where the exact one does, and early it does so
# only half. For the linear map and the quarter each of the four intervals holds zero, for the half
# three of them: with eight prompts their directions can hardly be told from one that knows nothing.
# The points on the right lie on the line, so the cosine is indeed what a short move gains: through
# the tiny decoder nine tenths at steps 8 and 14, half at step 2, at three fifths of the operations.
# (What a whole run with long moves gains is another question: the study of decoders in [what was
# measured](studies/results/README.md#cheaper-decoders) asks it.)
#
# ## What held
#
# - An updated step is $4N + 2(D + R)$ operations, within 10 %, and a plain one $2N$.
# - Frozen weights save operations and memory at once; making the graph twice costs one branch of
#   the network and holds less.
# - All settings of memory give the gradient of one graph, up to rounding.
# - `dk.estimate` grows in proportion to the batch (within 10 %).
# - By the mean the tiny decoder's gradient agrees with the exact one better than every other cheap
#   decoder's at each of four steps. The cosine predicts what a short move gains (correlation above
#   0.9).
#
# ## Exercises
#
# 1. If the decoder cost nothing, how many plain steps would an update cost? Predict it from $N$ and
#    $R$, then compare with the linear decoder.
# 2. You may spend twice the operations of plain sampling. At which share of the steps can you
#    update?
# 3. How many pictures at once fit into 1 GiB with an update, beside the weights? Use the estimate
#    for one.
#
# <details><summary>Solutions</summary>
#
# 1. $(4N + 2R) / 2N = 2.04$ plain steps. The linear decoder, which costs next to nothing, takes
#    1.98 by the count of operations: the way back through the network is a little less than $N$, as
#    its first layers do not see the words.
# 2. With a share $s$ of the steps updated, sampling costs $1 + s\,(3.88 - 1)$: 2 at $s = 0.35$.
#    By the measured time of 4.59 it is $s = 0.28$.
# 3. One takes 12.6 MiB, so 81.
#
# </details>
