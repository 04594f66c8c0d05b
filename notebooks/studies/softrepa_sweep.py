"""SoftREPA on a shipped model: which settings, does it help, and beside DATE at the same cost?

`sweep` trains one set of tokens for each setting and judges it on tuning prompts. It takes the
setting that the held-out reward likes best, trains it for longer, and judges that on test prompts,
which nothing was chosen on.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import datekit as dk
from datekit.methods.soft_tokens import SoftTokens, shipped_file
from datekit.softrepa.plan import layers_of
from studies.machine import facts
from studies.results import COST, FIXED, Notes, best, fingerprint, summary, table
from studies.training.negatives import hard_negatives
from studies.trials import Trials

BASE = "base"
DATE_EVERY, DATE_SHARE = 4, 1 / 64  # steps between updates; rho in units of ||c_org||
MOST_STEPS = 50  # of the rows that spend on steps what DATE spends on gradients
COUNTING_PAIRS = 96
RATE = 1e-2  # ten times the authors': here are hundreds of steps, where they take tens of thousands


def shapes_pairs(n: int, seed: int) -> dk.softrepa.Pairs:
    """n training scenes, each with a true caption of any family that fits, and four false ones."""
    rng = np.random.default_rng([seed, 1])
    scenes, captions, wrong = dk.shapes.sample_scenes(n, seed), [], []
    for scene in scenes:
        fitting = dk.shapes.families(scene)
        captions.append(dk.shapes.caption(scene, fitting[rng.integers(len(fitting))], rng))
        wrong.append(hard_negatives(captions[-1], scene.things, 4, rng))
    images = [dk.shapes.render([scene])[0] for scene in scenes]
    return dk.softrepa.Pairs(images, captions, wrong, name=f"shapes:{n}")


def variants(model: str) -> dict[str, dict]:
    """What is trained: the base, and what one change makes of it, as settings of `Plan`."""
    flow = model == "shapes-flow"
    weight = 0.0 if flow else 10.0
    contrast = dk.softrepa.Contrast
    base = {
        "lr": RATE,
        "num_tokens": 4,
        "layers": 5 if flow else ("down",),
        "time": flow,
        "contrast": contrast(dweight=weight),
    }
    changes = {
        BASE: {},
        "layers 1-2" if flow else "layers down, mid": {"layers": 2 if flow else ("down", "mid")},
        "all layers": {"layers": "all"},
        "1 token": {"num_tokens": 1},
        "16 tokens": {"num_tokens": 16},
        "raw logits": {"contrast": contrast(exponential=False, dweight=weight)},
        "without time" if flow else "with time": {"time": not flow},
        "hard negatives": {"negatives": 3},
        "5 x the learning rate": {"lr": 5 * RATE},
    }
    last = "with the denoising term" if flow else "contrast alone"
    changes[last] = {"contrast": contrast(dweight=10.0 - weight)}
    return {name: base | change for name, change in changes.items()}


def sweep(
    out: str | Path,
    *,
    model: str = "shapes",
    tokens: str | Path | None = None,
    steps: int = 20,
    pairs: int = 304,
    tuning_pairs: int = 128,
    train_steps: int = 200,
    final_steps: int = 500,
    scenes: int = 1000,
    seed: int = 0,
) -> dict:
    """Run it all and write `out` (JSON) and the chosen tokens; goes on, row by row, where it
    stopped.

    steps: of sampling; pairs, tuning_pairs: prompts with a seed each; train_steps, final_steps: of
    a setting and of the chosen one; scenes: of training; tokens: where the chosen ones go, the
    place of those that ship by default.
    """
    settings = {key: value for key, value in locals().items() if key not in ("out", "tokens")}
    out, tokens = Path(out), shipped_file(model) if tokens is None else Path(tokens)
    notes = Notes(out, settings | {"weights": fingerprint(model)})

    def trials(count: int, part: str, family: str, offset: int) -> Trials:
        prompts = dk.shapes.prompts("heldout", count, seed, family, part)
        return Trials(model, prompts, seed + offset, steps=steps)

    tune, bench = trials(tuning_pairs, "tune", "position", 1), trials(pairs, "test", "position", 0)
    work = out.with_name(f"{out.name}.{notes.settings['weights']}.training.progress")

    def learn(name: str, plan: dict, count: int) -> SoftTokens:
        pairs = shapes_pairs(scenes, seed)
        path = work / f"{name.replace(' ', '-').replace(',', '')}-{count}.pt"
        return dk.softrepa.train(
            bench.backbone, pairs, steps=count, seed=seed, checkpoint=path, **plan
        )

    def judge(name: str, plan: dict) -> dict:
        learnt = learn(name, plan, train_steps)
        training = {key: learnt.config[key] for key in ("seconds", "curve")}
        return tune.judge(tune.sample(dk.SoftREPA(learnt))) | {"training": training}

    plain = notes.get(f"tune: {FIXED}", lambda: tune.judge(tune.sample(dk.Fixed())))
    tried = {}
    for name, plan in variants(model).items():
        tried[name] = notes.get(f"tune: {name}", judge, name, plan)
    liked = best(tried)
    final = learn(f"final {liked}", variants(model)[liked], final_steps)
    final.save(tokens)
    rows = _test(bench, dk.SoftREPA(final), notes)
    counting, counted = trials(COUNTING_PAIRS, "test", "counting", 2), {}
    for name, method in ((FIXED, dk.Fixed()), ("SoftREPA", dk.SoftREPA(final))):
        counted[name] = notes.get(f"counting: {name}", counting.judge, counting.sample(method))
    training = {"seconds of training": final.config["seconds"], "curve": final.config["curve"]}
    told = {name: _told(bench.backbone, plan) for name, plan in variants(model).items()}
    tuning = {name: _summary(row, plain) for name, row in tried.items()}
    shutil.rmtree(work, ignore_errors=True)
    flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in settings.items())
    return notes.finish(
        {"command": f"PYTHONPATH=notebooks python -m studies softrepa {flags}"}
        | facts()
        | settings
        | {
            "weights": notes.settings["weights"],
            "guidance_scale": bench.backbone.recommended.guidance_scale,
            "rho": _rho(bench),
            "DATE every": DATE_EVERY,
            "settings": told,
            "tuning": {FIXED: summary(plain)} | tuning,
            "chosen by the held-out reward on tuning prompts": liked,
            "parameters": sum(x.numel() for x in final.numbers.values()),
            "final": training | {"digest": final.digest},
            "rows": {name: summary(row, rows[FIXED]) for name, row in rows.items()},
            "counting": {name: summary(row, counted[FIXED]) for name, row in counted.items()},
        }
    )


def _rho(bench: Trials) -> float:
    return float(f"{DATE_SHARE * bench.norm():.2g}")


def _test(bench: Trials, soft: dk.SoftREPA, notes: Notes) -> dict[str, dict]:
    """Soft tokens against DATE against both; and what the time that DATE takes buys in steps."""
    date = dk.DATE(bench.guide, rho=_rho(bench), when=dk.every(DATE_EVERY))
    methods = {FIXED: dk.Fixed(), "SoftREPA": soft, "DATE": date, "SoftREPA + DATE": soft + date}
    rows = {}
    for name, method in methods.items():
        rows[name] = notes.get(f"test: {name}", bench.judge, bench.sample(method))
    ratio = rows["DATE"][COST] / rows[FIXED][COST]
    more = min(MOST_STEPS, round(bench.steps * max(1.0, ratio)))
    for name, method in ((FIXED, dk.Fixed()), ("SoftREPA", soft)):
        longer = f"{name}, {more} steps"
        draw = bench.sample(method, num_steps=more)
        rows[longer] = notes.get(f"test: {longer}", bench.judge, draw)
    return rows


def _summary(row: dict, base: dict) -> dict:
    seconds, curve = row["training"]["seconds"], row["training"]["curve"]
    end = {f"{name} at the end": curve[-1][name] for name in ("entropy", "accuracy")}
    return summary(row, base) | {"seconds of training": seconds, "curve": curve} | end


def _told(backbone, plan: dict) -> dict:
    contrast, hard = plan["contrast"], "negatives" in plan
    return {
        "tokens": plan["num_tokens"],
        "layers": list(layers_of(backbone, plan["layers"])),
        "time": plan["time"],
        "learning rate": plan["lr"],
        "exponential": contrast.exponential,
        "dweight": contrast.dweight,
        "negatives": "its own false captions" if hard else "the captions of the batch",
    }


def markdown(content: dict, parts: Sequence[str] = ("tuning", "rows", "counting")) -> str:
    """The settings and the test as Markdown tables.

    They hold means, and paired differences to the fixed embedding with 95 % intervals.
    """
    return "\n\n".join(table(content[part], head=part) for part in parts) + "\n"
