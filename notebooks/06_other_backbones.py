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
# # Other backbones, other solvers
#
# Does any of this depend on one model or one solver? The same lines run on a U-Net that predicts
# noise or velocity and on a joint transformer trained by flow matching; with one network evaluation
# a step or with solvers that remember their past. One variable switches the notebook from what
# ships with the package to a large model.
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

import matplotlib.pyplot as plt
import pandas as pd
import torch
from studies.large import load_large

import datekit as dk
from datekit.files import weights_path
from datekit.solvers import FLOW_SOLVERS, SOLVERS

MODEL = "shapes"  # or one of LARGE, on a GPU

# %% [markdown]
# ## The lines for a large model
#
# On a GPU with the weights at hand, this is all that changes. `dk.load` takes a hub id or a folder
# that `save_pretrained` wrote; keywords go to diffusers' `from_pretrained`. A CLIP score takes the
# place of the small CLIP. Where there is no GPU, or the weights of model or reward are out of
# reach, `load_large` says so in a sentence and gives `None`: then the notebook runs on what ships
# with the package.


# %%
def clip():
    """The reward of the large models."""
    return dk.rewards.CLIPScore("ViT-L-14", "openai")


LARGE = {
    "SD v1.5": lambda: (
        dk.load("stable-diffusion-v1-5/stable-diffusion-v1-5", dtype=torch.float16),
        clip(),
    ),
    "SDXL": lambda: (
        dk.load("stabilityai/stable-diffusion-xl-base-1.0", dtype=torch.float16, variant="fp16"),
        clip(),
    ),
    "PixArt-alpha": lambda: (
        dk.load("PixArt-alpha/PixArt-XL-2-512x512", dtype=torch.float16),
        clip(),
    ),
    "SD3": lambda: (
        dk.load("stabilityai/stable-diffusion-3-medium-diffusers", dtype=torch.float16),
        clip(),
    ),
    "FLUX": lambda: (dk.load("black-forest-labs/FLUX.1-dev", dtype=torch.bfloat16), clip()),
}
large = load_large(MODEL, LARGE)
if large:
    backbones, reward = [large[0]], large[1]
    PROMPTS = [
        "a red cube left of a blue sphere",
        "a green star and a yellow moon",
        "a dog and a blue balloon",
    ]
    RHO = 0.5
else:
    backbones = [dk.load(name) for name in dk.backbones.SHIPPED]
    reward = dk.rewards.load("shapes-clip")
    PROMPTS = dk.shapes.prompts("heldout", 8, seed=5, part="tune")
    RHO = None  # a share of ||c_org||, below
SEEDS = list(range(len(PROMPTS)))
for backbone in backbones:
    print(f"{backbone.name}: {type(backbone.network).__name__}, {backbone.recommended}")

# %% [markdown]
# ## What is the embedding, and what may move?
#
# The paper's $c$ is the sequence that the network attends to. Which encoders make it, whether a
# pooled vector goes with it, and which positions are masked differs. DATE moves the sequence;
# padding that is masked never moves.

# %%
rows = []
for backbone in backbones:
    cond = backbone.encode(PROMPTS)
    moving = cond.mask[0].sum().item() if cond.mask is not None else cond.sequence.shape[1]
    rows.append({
        "model": backbone.name, "network": type(backbone.network).__name__,
        "c": "x".join(map(str, cond.sequence.shape[1:])),
        "positions that move": moving,
        "pooled": "-" if cond.pooled is None else cond.pooled.shape[1],
        "||c_org||": round(cond.sequence.flatten(1).norm(dim=1).mean().item(), 1),
    })  # fmt: skip
pd.DataFrame(rows).set_index("model")

# %% [markdown]
# ## The same experiment on each
#
# A fixed embedding against DATE at every step, from the same noise. The radius is a share of
# $\lVert c_{org} \rVert$, because encoders work on different scales.

# %% tags=["results"]
SHARE = 1 / 64
runs = {}
for backbone in backbones:
    size = backbone.encode(PROMPTS).sequence.flatten(1).norm(dim=1).mean().item()
    rho = RHO or SHARE * size
    for method in (dk.Fixed(), dk.DATE(reward, rho=rho)):
        sampler = dk.Sampler(backbone, method, num_steps=20)
        runs[backbone.name, type(method).__name__] = sampler.start(PROMPTS, seeds=SEEDS).finish()
table = []
for (name, method), run in runs.items():
    with torch.no_grad():
        row = {
            "model": name,
            "method": method,
            "h": dk.rewards.score(reward, run.pixels, PROMPTS).mean().item(),
        }
    if name.startswith("shapes"):
        row["right by the oracle"] = sum(
            verdict.right for verdict in dk.shapes.judge(run.pixels, PROMPTS)
        )
    table.append(row)
print(
    f"{len(PROMPTS)} prompts, seeds 0 to {len(PROMPTS) - 1}, 20 steps, "
    f"rho = ||c_org|| / {1 / SHARE:.0f}:",
    "too few to tell methods apart by the oracle",
)
pd.DataFrame(table).set_index(["model", "method"]).round(3)

# %%
for backbone in backbones:
    pair = [runs[backbone.name, method] for method in ("Fixed", "DATE")]
    ax = dk.plot.compare(*pair, labels=["fixed", "DATE"])
    ax.figure.suptitle(backbone.name)
    plt.show()

# %% [markdown]
# ## Are the two shipped models equally good?
#
# The flow model was to come within 10 points of the U-Net, by the oracle. It does on prompts about
# position, on which this notebook and the studies run, and not everywhere: compare gains within a
# model, not pictures between the two. Shares of right pictures at each model's own settings, from
# `training.json` beside the weights (what neither can draw counts as near, too); 100 pictures a
# family tell differences to within 14 points at worst.

# %%
card = json.loads((weights_path("training.json")).read_text())
models = {row["defaults"]["name"]: row for row in card["models"].values()}
right = pd.DataFrame({name: row["families"] for name, row in models.items()})
near = (right["shapes"] - right["shapes-flow"]).abs().round(2) <= 0.10


def percent(kinds):
    """Both models' shares of these families in words."""
    return ", ".join(
        f"{kind} ({right['shapes'][kind]:.0%} and {right['shapes-flow'][kind]:.0%})"
        for kind in kinds
    )


print(
    f"shapes and shapes-flow, {models['shapes']['images']} pictures a family:",
    f"within 10 points for {percent(near.index[near])};",
    f"further apart for {percent(near.index[~near])}",
)
assert near["position"]
assert not near.all()
assert (
    right["shapes-flow"][~near] < right["shapes"][~near]
).all()  # where they differ, the flow model is the worse one
right

# %% [markdown]
# Does an update raise the reward where it is made? First order says by
# $\rho\,\lVert\nabla_c h\rVert$, on any backbone, if $\rho$ is small.

# %%
for backbone in backbones:
    sampler = dk.Sampler(backbone, dk.Fixed(), num_steps=20)
    run = sampler.start(PROMPTS, seeds=SEEDS)
    run.step(10)
    look = run.peek(reward)
    small = 0.01 * look.c.flatten(1).norm(dim=1).mean().item() / 16
    moved = run.peek(reward, look.c + small * look.direction)
    gain, predicted = (moved.h - look.h).mean().item(), (small * look.grad_norm).mean().item()
    print(
        f"{backbone.name}: step 10, rho {small:.3g}: h rises by {gain:.2e}, "
        f"first order says {predicted:.2e}"
    )
    assert abs(gain / predicted - 1) < 0.2

# %% [markdown]
# ## Other solvers
#
# How many steps does each solver need? All of them start from the same noise; those without noise
# of their own follow the same differential equation, so with enough steps they should meet.
# Distance to a run of many steps, in pixels:

# %%
REFERENCE, COUNTS = 200, (5, 10, 20, 40)
few, few_seeds = PROMPTS[:4], SEEDS[:4]
curves = {}
for backbone in backbones:
    flow = backbone.recommended.solver == "own"
    finest = (
        dk.Sampler(backbone, num_steps=REFERENCE, solver="euler")
        .start(few, seeds=few_seeds)
        .finish()
        .pixels
    )
    for solver in FLOW_SOLVERS if flow else [name for name in SOLVERS if name != "ddpm"]:
        far = [
            (
                dk.Sampler(backbone, num_steps=n, solver=solver)
                .start(few, seeds=few_seeds)
                .finish()
                .pixels
                - finest
            )
            .abs()
            .mean()
            .item()
            for n in COUNTS
        ]
        curves[backbone.name, solver] = far
distance = pd.DataFrame(curves, index=pd.Index(COUNTS, name="steps")).T.round(4)
distance

# %%
fig, axes = plt.subplots(
    1, len(backbones), figsize=(4.5 * len(backbones), 3), sharey=True, squeeze=False
)
for ax, backbone in zip(axes[0], backbones, strict=True):
    mine = {solver: far for (name, solver), far in curves.items() if name == backbone.name}
    for n, (solver, far) in enumerate(
        mine.items()
    ):  # hollow markers, the later the smaller: a line that lies under others still shows
        ax.loglog(
            COUNTS,
            far,
            color=dk.plot.COLOURS[n],
            linestyle=dk.plot.STYLES[n],
            marker=dk.plot.MARKERS[n],
            markersize=11 - 2 * n,
            markerfacecolor="none",
            linewidth=2.6 - 0.5 * n,
            label=solver,
        )
    ax.set(
        title=backbone.name,
        xlabel="steps",
        ylabel=f"mean distance to {REFERENCE} Euler steps",
        xticks=COUNTS,
        xticklabels=COUNTS,
    )
    ax.minorticks_off()
    ax.legend(handlelength=4)
for far in curves.values():
    assert far[-1] < far[0]  # more steps, closer

# %% [markdown]
# Multistep solvers remember earlier outputs. In `datekit` that memory belongs to the state, so
# forks and rewinds stay exact:

# %%
run = dk.Sampler(backbones[0], num_steps=10, solver="dpm++").start(few, seeds=few_seeds)
run.step(6)
fork = run.fork()
print("the state remembers:", ", ".join(sorted(run.state.solver_state)))
assert torch.equal(run.finish().state.xt, fork.finish().state.xt)
assert torch.equal(run.rewind(to=3).finish().state.xt, fork.state.xt)

# %% [markdown]
# ## What a large model takes
#
# Parameters are counted from the published configurations without making the weights; text encoders
# as published, two bytes a parameter. A step is `dk.estimate`'s count for one picture in bfloat16
# at the published size, network and decoder included (`make bench-gpu`): all of it
# *estimates* unless the column says measured. Text encoders may go to the CPU once the prompts are
# encoded; the reward's network comes on top. SDXL in float16, as in the line above, keeps its
# decoder in float32: an updated step is then estimated at 32.5 GiB.

# %%
from studies.architectures import ARCHITECTURES, sizes

full = json.loads((Path("studies") / "results" / "full-size.json").read_text())
steps = {row["model"]: row for row in full["rows"] if (row["dtype"], row["batch"]) == ("bf16", 1)}
measured = all("counted" not in row for row in steps.values())
how = "measured" if measured else "estimated"


def gib(row, kind):
    """What one kind of step takes: counted, or else measured."""
    if "counted" in row:
        return row["counted"][kind]["GiB"]
    return row.get(kind, {}).get("peak GiB", float("nan"))


kinds = {
    "fixed": "a plain step",
    "updated": "an updated step",
    "little memory": "an updated step in little memory",
}
rows = []
for name in ARCHITECTURES:
    size = sizes(name)
    weights = {part: 2e9 * size[part] / 2**30 for part in size}
    rows.append({
        "model": name,
        "network (billion)": size["network"], "text encoders (billion)": size["text encoders"],
        "all weights, GiB (estimated)": sum(weights.values()),
        "without text encoders": weights["network"] + weights["decoder"],
        **{f"{words}, GiB ({how})": gib(steps[name], kind) for kind, words in kinds.items()},
    })  # fmt: skip
memory = pd.DataFrame(rows).set_index("model")
plain, updated, little = (memory[column] for column in memory.columns[-3:])
assert (memory["without text encoders"] < plain).all()
assert (plain < updated).all()
assert (little <= updated).all()
memory.round(2)

# %% [markdown]
# ## Exercises
#
# 1. On a family with a pooled vector (SDXL, SD3, FLUX), move it instead of the sequence:
#    `dk.DATE(reward, rho=..., update="pooled")`. Does $h$ rise as much for the same share of its
#    norm?
# 2. Does the solver change what DATE gains? Compare `solver="ddim"` and `solver="dpm++"` at 10
#    steps.
# 3. From which step on is the layout decided? Does the solver change that? Compare
#    `dk.plot.filmstrip` of two solvers.
#
# <details><summary>Solutions</summary>
#
# 1. `sampler = dk.Sampler(backbone, dk.DATE(reward, rho=0.3, update="pooled"), num_steps=20)` and
#    `run = sampler.start(PROMPTS, seeds=SEEDS).finish()`, then score `run.pixels`. The pooled
#    vector only reaches the network through its modulation, the sequence through every attention.
# 2. Build both samplers with `dk.DATE(...)` and with `dk.Fixed()`; compare the *differences* of
#    `dk.rewards.score` within a solver.
# 3. `run = dk.Sampler(backbone, num_steps=20, solver="dpm++").start(PROMPTS[:1], seeds=[0])`, then
#    `dk.plot.filmstrip(run.finish())`, and the same with `"ddim"`: it is a matter of the noise
#    level, not of the solver.
#
# </details>
