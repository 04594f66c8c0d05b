"""SoftREPA on a shipped model: which settings, does it help on held-out prompts, and beside DATE at the same cost?

`datekit softrepa sweep --out FILE` trains one set of tokens for each setting, judges it on tuning prompts, takes the setting that the
held-out reward likes best, trains it for longer, and judges that on test prompts, which nothing was chosen on.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from datekit.evaluation.machine import facts, flags
from studies.trials import COST, FIXED, Notes, Trials, best, fingerprint, summary, table
from datekit.methods import DATE, Fixed, SoftREPA
from datekit.schedules import every
from datekit.methods.soft_tokens import SoftTokens, shipped_file
from datekit.softrepa.data import shapes_pairs
from datekit.softrepa.encoded import Encoded, encode
from datekit.softrepa.loss import Contrast
from datekit.softrepa.training import layers_of, train

BASE = "base"
DATE_EVERY, DATE_SHARE = 4, 1 / 64  # steps between updates; rho in units of ||c_org||
MOST_STEPS = 50  # of the rows that spend on steps what DATE spends on gradients
COUNTING_PAIRS = 96
RATE = 1e-2  # ten times the authors': here are hundreds of steps, where they take tens of thousands


def variants(model: str) -> dict[str, dict]:
    """What is trained: the base, and what one change makes of it, as keywords of `train`."""
    flow = model == "shapes-flow"
    base = {
        "lr": RATE,
        "num_tokens": 4,
        "layers": 5 if flow else ("down",),
        "time": flow,
        "contrast": Contrast(dweight=0.0 if flow else 10.0),
    }
    weight = base["contrast"].dweight
    changes = {
        BASE: {},
        "layers 1-2" if flow else "layers down, mid": {"layers": 2 if flow else ("down", "mid")},
        "all layers": {"layers": "all"},
        "1 token": {"num_tokens": 1}, "16 tokens": {"num_tokens": 16},
        "raw logits": {"contrast": Contrast(exponential=False, dweight=weight)},
        "without time" if flow else "with time": {"time": not flow},
        "hard negatives": {"negatives": 3, "hard": True},
        "5 x the learning rate": {"lr": 5 * RATE},
        "with the denoising term" if flow else "contrast alone": {"contrast": Contrast(dweight=10.0 - weight)},
    }  # fmt: skip
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
    """Run it all and write `out` (JSON) and the chosen tokens; goes on, row by row, where it was interrupted.

    steps: of sampling; pairs, tuning_pairs: prompts with a seed each; train_steps, final_steps: of a setting and of the chosen one;
    scenes: of training. tokens: where the chosen ones go, the place of those that ship by default.
    """
    from datekit.shapes.captions import prompts

    out, tokens = Path(out), shipped_file(model) if tokens is None else Path(tokens)
    settings = {
        "model": model,
        "steps": steps,
        "pairs": pairs,
        "tuning_pairs": tuning_pairs,
        "train_steps": train_steps,
        "final_steps": final_steps,
        "scenes": scenes,
        "seed": seed,
    }
    notes = Notes(out, settings | {"weights": fingerprint(model)})
    trials = lambda n, part, family, offset: Trials(
        model, prompts("heldout", n, seed, family, part), seed + offset, steps=steps
    )
    tune, bench = trials(tuning_pairs, "tune", "position", 1), trials(pairs, "test", "position", 0)
    work = out.with_name(f"{out.name}.{notes.settings['weights']}.training.progress")
    school = TokenTrainer(bench.backbone, work, shapes_pairs(scenes, seed), seed)

    plain = notes.get(f"tune: {FIXED}", lambda: tune.judge(tune.sample(Fixed())))
    tried = {
        name: notes.get(
            f"tune: {name}", lambda n=name, k=kwargs: school.judged(n, k, train_steps, tune)
        )
        for name, kwargs in variants(model).items()
    }
    liked = best(tried)
    final = school.learn(f"final {liked}", variants(model)[liked], final_steps)
    final.save(tokens)
    rows = _test(bench, SoftREPA(final), notes)
    counting = trials(COUNTING_PAIRS, "test", "counting", 2)
    counted = {
        name: notes.get(f"counting: {name}", lambda m=method: counting.judge(counting.sample(m)))
        for name, method in ((FIXED, Fixed()), ("SoftREPA", SoftREPA(final)))
    }
    content = {
        "command": f"datekit softrepa sweep {flags(settings)}", **facts(), **settings,
        "guidance_scale": bench.backbone.recommended.guidance_scale, "rho": _rho(bench), "DATE every": DATE_EVERY,
        "settings": {name: _told(bench.backbone, kwargs) for name, kwargs in variants(model).items()},
        "tuning": {FIXED: summary(plain)} | {name: _summary(row, plain) for name, row in tried.items()},
        "chosen by the held-out reward on tuning prompts": liked, "parameters": final.num_parameters,
        "final": {"seconds of training": final.config["seconds"], "curve": final.config["curve"], "digest": final.digest},
        "rows": {name: summary(row, rows[FIXED]) for name, row in rows.items()},
        "counting": {name: summary(row, counted[FIXED]) for name, row in counted.items()},
    }  # fmt: skip
    shutil.rmtree(work, ignore_errors=True)
    return notes.finish(content)


class TokenTrainer:
    """The model and its pairs, encoded once, and a checkpoint for each training."""

    def __init__(self, backbone, folder: Path, pairs, seed: int) -> None:
        self.backbone, self.folder, self.pairs, self.seed = backbone, folder, pairs, seed
        self._encoded: Encoded | None = None

    def learn(self, name: str, kwargs: dict, steps: int) -> SoftTokens:
        """The tokens of a setting, from its checkpoint where there is one."""
        if self._encoded is None:
            self._encoded = encode(self.backbone, self.pairs, cache=self.folder / "encoded.pt")
        path = self.folder / f"{name.replace(' ', '-').replace(',', '')}-{steps}.pt"
        return train(
            self.backbone, self._encoded, steps=steps, seed=self.seed, checkpoint=path, **kwargs
        )

    def judged(self, name: str, kwargs: dict, steps: int, bench: Trials) -> dict:
        """The tokens of a setting, trained and judged."""
        tokens = self.learn(name, kwargs, steps)
        return bench.judge(bench.sample(SoftREPA(tokens))) | {
            "training": {name: tokens.config[name] for name in ("seconds", "curve")}
        }


def _rho(bench: Trials) -> float:
    return float(f"{DATE_SHARE * bench.norm():.2g}")


def _test(bench: Trials, soft: SoftREPA, notes: Notes) -> dict[str, dict]:
    """Soft tokens against DATE against both; and what the time that DATE takes buys in steps."""
    date = DATE(bench.guide, rho=_rho(bench), when=every(DATE_EVERY))
    rows: dict[str, dict] = {}

    def add(name: str, draw: Callable) -> None:
        rows[name] = notes.get(f"test: {name}", lambda: bench.judge(draw))

    for name, method in (
        (FIXED, Fixed()),
        ("SoftREPA", soft),
        ("DATE", date),
        ("SoftREPA + DATE", soft + date),
    ):
        add(name, bench.sample(method))
    ratio = rows["DATE"][COST] / rows[FIXED][COST]
    more = min(MOST_STEPS, round(bench.steps * max(1.0, ratio)))
    for name, method in ((f"fixed, {more} steps", Fixed()), (f"SoftREPA, {more} steps", soft)):
        add(name, bench.sample(method, num_steps=more))
    return rows


def _summary(row: dict, base: dict) -> dict:
    seconds, curve = row["training"]["seconds"], row["training"]["curve"]
    return (
        summary(row, base)
        | {"seconds of training": seconds, "curve": curve}
        | {f"{name} at the end": curve[-1][name] for name in ("entropy", "accuracy")}
    )


def _told(backbone, kwargs: dict) -> dict:
    contrast = kwargs["contrast"]
    return {
        "tokens": kwargs["num_tokens"],
        "layers": list(layers_of(backbone, kwargs["layers"])),
        "time": kwargs["time"],
        "learning rate": kwargs["lr"],
        "exponential": contrast.exponential,
        "dweight": contrast.dweight,
        "negatives": "its own false captions"
        if kwargs.get("hard")
        else "the captions of the batch",
    }


def markdown(content: dict, parts: Sequence[str] = ("tuning", "rows", "counting")) -> str:
    """The settings and the test as Markdown tables: means, and paired differences to the fixed embedding with 95 % intervals."""
    return "\n\n".join(table(content[part], head=part) for part in parts) + "\n"
