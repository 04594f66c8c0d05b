"""What a step is made of: seconds by phase, floating-point operations, peak memory; and the plain implementation to compare with."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from datekit.estimates import flops
from datekit.types import State, unit

PHASES = ("network", "decode", "reward", "backward")


def matrix_rate(
    device: torch.device, dtype: torch.dtype, size: int | None = None, repeats: int = 5
) -> float:
    """Floating-point operations a second that the machine reaches in a product of square matrices, the best of several."""
    size = size or (8192 if device.type == "cuda" else 1024)
    a = torch.randn(size, size, device=device).to(dtype)
    best = min(_seconds(lambda: a @ a, device) for _ in range(1 + repeats))
    return 2 * size**3 / best


def step_cost(call: Callable[[], object], backbone, reward=None, repeats: int = 3) -> dict:
    """Median seconds of a step, of its phases, its GFLOP, and the peak of GPU memory (GiB, None on a CPU); the first call warms up.

    Phases are measured in runs of their own, as waiting for each makes a GPU slower: network (forward), decode and reward
    (forward), backward (all of it).
    """
    device = backbone.device
    call()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = statistics.median(_seconds(call, device) for _ in range(repeats))
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
    found: list[dict[str, float]] = []
    for _ in range(repeats):
        with timed(backbone, reward) as spent:
            call()
        found.append(spent)
    phases = {name: round(statistics.median(spent[name] for spent in found), 5) for name in PHASES}
    return {
        "seconds": round(seconds, 5),
        "peak GiB": None if peak is None else round(peak, 2),
        "phases": phases,
        "GFLOP": round(flops(call) / 1e9, 3),
    }


@contextlib.contextmanager
def timed(backbone, reward=None) -> Iterator[dict[str, float]]:
    """Inside, the seconds that network, decoder, reward and backward take are added up under `PHASES`."""
    spent = dict.fromkeys(PHASES, 0.0)
    target = getattr(reward, "reward", reward)  # what a `DecodedWith` asks

    def clocked(name: str, function: Callable) -> Callable:
        def call(*args, **kwargs):
            _wait(backbone.device)
            began = time.perf_counter()
            result = function(*args, **kwargs)
            _wait(backbone.device)
            spent[name] += time.perf_counter() - began
            return result

        return call

    backward, forward = torch.autograd.grad, getattr(target, "forward", None)
    backbone.predict = clocked("network", backbone.predict)
    if hasattr(reward, "decoder"):  # a `DecodedWith` shows the reward pictures of its own
        shower, name, shown = (
            reward,
            "decoder",
            lambda b, own=reward.decoder: clocked("decode", own(b)),
        )
    else:
        shower, name, shown = backbone, "decode", clocked("decode", backbone.decode)
    setattr(shower, name, shown)
    torch.autograd.grad = clocked("backward", backward)
    if forward is not None and hasattr(target, "__dict__"):
        with contextlib.suppress(AttributeError):
            target.forward = clocked("reward", forward)
    try:
        yield spent
    finally:
        del backbone.predict
        delattr(shower, name)
        torch.autograd.grad = backward
        with contextlib.suppress(AttributeError, KeyError):
            del target.__dict__["forward"]


def plain_step(sampler, state: State, reward: Callable, rho: float = 0.5) -> Tensor:
    """An updated step as one would write it down: one graph from c to h, the whole batch at once, both branches in it, weights not frozen.

    Returns the next xt, (B, C, H, W). The weights are frozen again afterwards.
    """
    backbone = sampler.backbone
    weights = [p for module in backbone._modules() for p in module.parameters()]
    for weight in weights:
        weight.requires_grad_(True)
    try:
        with torch.enable_grad():
            c = state.c.detach().requires_grad_()
            h = reward(backbone.decode(sampler.predict(state, c).x0bar), list(state.prompts))
            (grad,) = torch.autograd.grad(h.sum(), c)
        with torch.no_grad():
            prediction = sampler.predict(state, state.c_org + rho * unit(grad))
            return sampler.solver_for(state.xt.shape).step(
                prediction.out, state.xt, state.i, state.solver_state, state.seeds, None
            )[0]
    finally:
        for weight in weights:
            weight.requires_grad_(False)


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    began = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
