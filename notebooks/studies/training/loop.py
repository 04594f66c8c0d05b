"""One training loop for every stage: resumable, and the same whether or not it was interrupted."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from datekit.files import write_whole

SAVE_SECONDS = 60.0


class Draw:
    """Random numbers of one training step, a function of (seed, step) alone.

    Resuming therefore repeats nothing.
    """

    def __init__(self, seed: int, step: int):
        self.step = step
        self.numpy = np.random.default_rng([seed, step])
        self.torch = torch.Generator().manual_seed(int(self.numpy.integers(2**62)))


def reading(step: int, steps: int) -> float:
    """Share of position captions in reading order: all at first, later half of them.

    Where order and relation are both random, only their product says where a thing is: from that
    alone, learning relations takes several times longer.
    """
    return max(0.5, 1 - step / steps)


@dataclass
class Log:
    """What a stage leaves for the model card."""

    steps: int = 0
    seconds: float = 0.0
    curve: list[dict] = field(default_factory=list)


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over a twentieth of the steps, then a cosine down to 1 % of the peak."""
    warm = max(1, steps // 20)
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (
        0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
    )


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """`files.write_whole`, in a folder that is made where it is missing, for everybody to read."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def readable(partial: Path) -> None:
        write(partial)
        partial.chmod(0o644)  # safetensors writes files that only their owner reads

    write_whole(path, readable)


def fit(
    module: torch.nn.Module,
    loss: Callable[[Draw], tuple[torch.Tensor, dict]],
    *,
    steps: int,
    peak: float,
    path: Path,
    seed: int,
    ema: torch.nn.Module | None = None,
    probe: Callable[[], dict] | None = None,
    probe_every: int = 1000,
) -> Log:
    """Minimises `loss` over the module's parameters with AdamW, resuming from `path`.

    `ema`, a copy of the module, follows it as a moving average; `probe` measures quality for the
    curve.
    """
    optimiser = torch.optim.AdamW(
        module.parameters(), lr=peak, weight_decay=0.01, betas=(0.9, 0.99)
    )
    log = _resume(path, module, optimiser, ema)
    averages: dict[str, float] = {}
    clock = saved = time.monotonic()
    bar = tqdm(
        range(log.steps, steps),
        initial=log.steps,
        total=steps,
        desc=path.stem,
        delay=1.0,
        mininterval=1.0,
    )
    for step in bar:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, steps, peak)
        value, numbers = loss(Draw(seed, step))
        optimiser.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        if ema is not None:
            _follow(ema, module, min(0.999, (1 + step) / (20 + step)))
        for name, number in {"loss": value.item(), **numbers}.items():
            averages[name] = 0.98 * averages.get(name, number) + 0.02 * number
        last = step + 1 == steps
        if (step + 1) % probe_every == 0 or last:
            measured = probe() if probe else {}
            log.curve.append(
                {"step": step + 1, **{k: round(v, 4) for k, v in (averages | measured).items()}}
            )
            tqdm.write(f"{path.stem}: {json.dumps(log.curve[-1])}")
            bar.set_postfix(loss=averages["loss"])
        now = time.monotonic()
        if now - saved > SAVE_SECONDS or last:
            log.steps, log.seconds = step + 1, log.seconds + now - clock
            clock = saved = now
            _save(path, module, optimiser, ema, log)
    return log


@torch.no_grad()
def _follow(ema: torch.nn.Module, module: torch.nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(ema.parameters()), list(module.parameters()), 1 - decay)


def _save(path: Path, module, optimiser, ema, log: Log) -> None:
    state = {"module": module.state_dict(), "optimiser": optimiser.state_dict(), "log": vars(log)}
    if ema is not None:
        state["ema"] = ema.state_dict()
    write_atomically(path, lambda partial: torch.save(state, partial))


def _resume(path: Path, module, optimiser, ema) -> Log:
    if not path.exists():
        return Log()
    state = torch.load(path, map_location="cpu", weights_only=True)
    module.load_state_dict(state["module"])
    optimiser.load_state_dict(state["optimiser"])
    if ema is not None:
        ema.load_state_dict(state["ema"])
    return Log(**state["log"])
