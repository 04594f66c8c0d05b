"""What a step is made of: seconds by phase, operations, and the plain way to do it."""

from __future__ import annotations

import copy
import dataclasses
import re
import statistics
import time
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

import datekit as dk
from datekit.rewards.base import decoder_of
from datekit.rewards.decoders import DecodedWith
from datekit.types import State, unit

PHASES = ("network", "decode", "reward", "backward")


def peak_mib() -> float:
    """The most memory that this process has held so far, in MiB.

    Linux's `ru_maxrss` is not asked, as it also counts what a parent process had before this one.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS


def flops(call: Callable[[], object]) -> int:
    """The floating-point operations of a call, two for a multiply-add.

    Counted are those that PyTorch has a formula for: matrix products, convolutions, attention.
    """
    with Operations() as operations:
        call()
    return operations.total


class Operations(TorchDispatchMode):
    """Inside, adds up the operations; unlike PyTorch's own mode it bears `torch.autograd.grad`."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        formula = FORMULAS.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def _attention(q, k, v, *rest, **others) -> int:
    return sdpa_flop_count(q.shape, k.shape, v.shape)


def _attention_backward(grad, q, k, v, *rest, **others) -> int:
    return sdpa_backward_flop_count(grad.shape, q.shape, k.shape, v.shape)


FORMULAS = flop_registry | {  # with attention on a CPU, which PyTorch's own list lacks
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def matrix_rate(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> float:
    """Operations a second that the machine reaches in a product of square matrices, the best."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device).to(dtype)
    times = [seconds(lambda: a @ a, device) for _ in range(1 + repeats)]
    return 2 * size**3 / min(times)


class Clock:
    """Adds up the seconds that functions take, by phase; a call inside of another counts once."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.spent, self.running = device, dict.fromkeys(PHASES, 0.0), False

    def on(self, phase: str, function: Callable) -> Callable:
        """The function with its seconds added to a phase."""

        def call(*args, **kwargs):
            if self.running:
                return function(*args, **kwargs)
            self.running = True
            wait(self.device)
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                wait(self.device)
                self.spent[phase] += time.perf_counter() - began
                self.running = False

        return call

    def sampler(self, sampler: dk.Sampler) -> dk.Sampler:
        """The same sampler on a copy of its backbone, with network, decoder and reward clocked."""
        backbone, method = copy.copy(sampler.backbone), sampler.method
        backbone.predict = self.on("network", sampler.backbone.predict)
        backbone.decode = self.on("decode", sampler.backbone.decode)
        reward = method.reward
        if reward is not None:
            changes = {}
            if isinstance(reward, DecodedWith):
                decode = decoder_of(reward, sampler.backbone)
                changes["decoder"], reward = self.on("decode", decode), reward.reward
            method = dataclasses.replace(method, reward=self.on("reward", reward), **changes)
        return sampler.replace(backbone=backbone, method=method)


def step_cost(sampler: dk.Sampler, state: State, repeats: int = 3) -> dict:
    """Seconds of a step and of its phases, its GFLOP, and its peak of GPU memory (GiB or None).

    Medians; the first call warms up. Phases are measured in runs of their own, as waiting for each
    makes a GPU slower: network, decode and reward are forward, backward is all that is left.
    """
    row = call_cost(lambda: sampler.step(state), sampler.backbone.device, repeats)
    rounds = []
    for _ in range(repeats):
        clock = Clock(sampler.backbone.device)
        clocked = clock.sampler(sampler)
        whole = seconds(lambda s=clocked: s.step(state), clock.device)
        rounds.append(clock.spent | {"backward": max(0.0, whole - sum(clock.spent.values()))})
    phases = {name: statistics.median(spent[name] for spent in rounds) for name in PHASES}
    return row | {"phases": {name: round(value, 5) for name, value in phases.items()}}


def call_cost(call: Callable[[], object], device: torch.device, repeats: int = 3) -> dict:
    """Median seconds of a call after one that warms up, its GFLOP, its peak of GPU memory."""
    call()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    median = statistics.median(seconds(call, device) for _ in range(repeats))
    peak = None
    if device.type == "cuda":
        peak = round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
    gflop = round(flops(call) / 1e9, 3)
    return {"seconds": round(median, 5), "peak GiB": peak, "phases": {}, "GFLOP": gflop}


def plain_step(sampler: dk.Sampler, state: State, reward: Callable, rho: float = 0.5) -> Tensor:
    """An updated step as one would write it down: one graph from c to h, weights not frozen.

    Returns the next xt, (B, C, H, W). The weights are frozen again afterwards.
    """
    backbone = sampler.backbone
    with backbone.lock:
        thaw(backbone, True)
        try:
            with torch.enable_grad():
                c = state.c.detach().requires_grad_()
                x0bar = sampler.predict(state, c).x0bar
                h = reward(backbone.decode(x0bar), list(state.prompts))
                (grad,) = torch.autograd.grad(h.sum(), c)
        finally:
            thaw(backbone, False)
    with torch.no_grad():
        out = sampler.predict(state, state.c_org + rho * unit(grad)).out
        solver = sampler.solver_for(state.xt.shape)
        return solver.step(out, state.xt, state.i, state.solver_state, state.seeds, None)[0]


def thaw(backbone, wanted: bool) -> None:
    """Whether the weights of network and decoder ask for gradients."""
    for module in (backbone.network, backbone.pipe.vae):
        module.requires_grad_(wanted)


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """The seconds of a call, until the device is done with it."""
    wait(device)
    began = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - began


def wait(device: torch.device) -> None:
    """Until a GPU has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Kept:
    """One tensor that waits for backward."""

    def __init__(self, tensor):
        self.tensor = tensor.detach()


class SavedBytes:
    """Counts what autograd keeps for backward inside `hooks()`, each storage once, weights not at
    all.

    now, peak: bytes.
    """

    def __init__(self, backbone) -> None:
        own = [x for m in backbone._modules() for x in (*m.parameters(), *m.buffers())]
        self.weights = {x.untyped_storage().data_ptr() for x in own}
        self.now, self.peak, self.uses = 0, 0, Counter()

    def pack(self, tensor) -> Kept:
        """A tensor starts to wait."""
        storage, kept = tensor.untyped_storage(), Kept(tensor)
        place, size = storage.data_ptr(), storage.nbytes()
        if place not in self.weights:
            self.add(place, size, 1)
            weakref.finalize(kept, self.add, place, size, -1)
        return kept

    def add(self, place: int, size: int, by: int) -> None:
        """One use more or less of a storage."""
        before = self.uses[place] > 0
        self.uses[place] += by
        self.now += size * ((self.uses[place] > 0) - before)
        self.peak = max(self.peak, self.now)

    def hooks(self):
        """The context inside which it counts."""
        return torch.autograd.graph.saved_tensors_hooks(self.pack, lambda kept: kept.tensor)
