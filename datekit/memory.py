"""Memory: what is free, what a graph holds for its backward, and what to say when there is not enough."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .errors import whole

MARGIN = (
    1.5  # kept graphs must fit into free memory so many times: backward makes gradients beside them
)


def free_bytes(device: torch.device | str) -> int:
    """Bytes that a device can still give: of a GPU, what is free or held unused by PyTorch; else what the system calls available."""
    device = torch.device(device)
    if device.type == "cuda":
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + idle
    return psutil.virtual_memory().available


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or PyTorch on the CPU, could not get the memory it asked for."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )


@dataclass(frozen=True)
class MemorySettings:
    """How much of a batch is in memory at once. Nothing changes these settings but their user.

    micro_batch: how many samples are differentiated at a time, the whole batch for None; decode_batch: how many of
    those are decoded and scored at a time, all for None; checkpointing: whether activations are recomputed in the
    backward pass instead of kept; keep_graph: whether the network's graph waits for the reward's gradient, which
    saves one forward pass and holds both graphs in memory together. The numbers hardly depend on any of them.
    """

    micro_batch: int | None = None
    decode_batch: int | None = None
    checkpointing: bool = False
    keep_graph: bool = True

    def __post_init__(self) -> None:
        for name in ("micro_batch", "decode_batch"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, whole(name, value, 1))
        for name in ("checkpointing", "keep_graph"):
            if getattr(self, name) not in (True, False):
                raise ValueError(f"{name} must be True or False, got {getattr(self, name)!r}")


_ADVICE = (
    "the memory of the device is used up. In the order of their price, lower decode_batch, "
    "which costs almost nothing; set keep_graph=False, which costs one more forward pass of the network; "
    "lower micro_batch, which uses the device less well; set checkpointing=True, which costs "
    "one more forward pass of network and decoder. All four are settings of dk.Sampler. "
    "Smaller pictures, fewer prompts at a time and half precision need less memory, too"
)


@contextlib.contextmanager
def explain() -> Iterator[None]:
    """Inside, an error of memory that is used up becomes one torch.OutOfMemoryError that says what to change."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if not out_of_memory(error) or _ADVICE in str(error):
            raise
        raise torch.OutOfMemoryError(f"{_ADVICE}.\n{error}") from error


class SavedBytes:
    """Inside `with`, counts the bytes that autograd saves for backward and has not freed yet: `now`, and the highest value, `peak`.

    A tensor that several operations save counts once; `known` storages (weights: there anyway) count nothing. What a function
    under activation checkpointing saves is counted while it is recomputed.
    """

    def __init__(self, known: set[int] = frozenset()) -> None:
        self.now = self.peak = 0
        self._known, self._held = known, {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda x: _Saved(x, self), lambda saved: saved.tensor
        )

    def __enter__(self) -> SavedBytes:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self._hooks.__exit__(*error)

    def _add(self, key: int, size: int, by: int) -> None:
        if key in self._known:
            return
        count = self._held.get(key, 0)
        self._held[key] = count + by
        if count + by == 0:
            del self._held[key]
        if count == 0 or count + by == 0:
            self.now += by * size
            self.peak = max(self.peak, self.now)


class _Saved:
    """One tensor that waits for backward."""

    def __init__(self, tensor: Tensor, counter: SavedBytes) -> None:
        storage = tensor.untyped_storage()
        self.tensor, self._counter, self._what = (
            tensor,
            counter,
            (storage.data_ptr(), storage.nbytes()),
        )
        counter._add(*self._what, 1)

    def __del__(self) -> None:
        self._counter._add(*self._what, -1)


class Alive(TorchDispatchMode):
    """Adds up the bytes of the tensors that are made inside and live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if not any(
            r.alias_info for r in func._schema.returns
        ):  # a view is no new memory, and a weight's view none of the step's
            for x in tree_leaves(out):
                if isinstance(x, Tensor):
                    self._count(x.untyped_storage())
        return out

    def _count(self, storage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known[key] = weakref.finalize(storage, self._gone, key, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _gone(self, key: int, size: int) -> None:
        self._known.pop(key, None)
        self.now -= size


@contextlib.contextmanager
def fused_attention(device: torch.device) -> Iterator[None]:
    """Inside, attention on the meta device is the fused one that a GPU runs, which keeps no (L, L) matrix; elsewhere nothing changes."""
    if device.type != "meta":
        yield
        return
    usual = torch.nn.functional.scaled_dot_product_attention

    def fused(
        query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **options
    ):
        if attn_mask is not None:
            shape = (*query.shape[:3], key.shape[2])
            attn_mask = (
                torch.empty(shape, dtype=query.dtype, device=query.device)
                if attn_mask.shape != shape
                else attn_mask.to(query.dtype)
            )
        needed = torch.is_grad_enabled() and (
            query.requires_grad or key.requires_grad or value.requires_grad
        )
        return torch.ops.aten._scaled_dot_product_efficient_attention(
            query, key, value, attn_mask, needed, dropout_p, is_causal, scale=scale
        )[0]

    torch.nn.functional.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        torch.nn.functional.scaled_dot_product_attention = usual


def weights(*modules) -> set[int]:
    """The storages of the parameters and buffers of modules (others are passed over), for `SavedBytes`."""
    found = [m for m in modules if isinstance(m, torch.nn.Module)]
    return {x.untyped_storage().data_ptr() for m in found for x in (*m.parameters(), *m.buffers())}


def modules_of(backbone, *rewards) -> list[torch.nn.Module]:
    """All that holds weights: of a backbone (SDXL may decode with a copy of its own), and in rewards, however deep."""
    found = [*backbone._modules(), backbone.vae] if hasattr(backbone, "_modules") else []
    pending, seen = list(rewards), set()
    while pending:
        part = pending.pop()
        if id(part) in seen or part is None:
            continue
        seen.add(id(part))
        if isinstance(part, torch.nn.Module):
            found.append(part)
        elif hasattr(part, "__dict__"):
            pending += [
                v
                for v in vars(part).values()
                if isinstance(v, (torch.nn.Module, tuple)) or callable(v)
            ]
        elif isinstance(part, tuple):
            pending += list(part)
    return found


@dataclass
class Limits:
    """How much of a batch is in memory at once: settings of a `Sampler`, where None is chosen, and what is chosen so far.

    micro_batch: samples differentiated at a time; decode_batch: samples of these that are decoded and scored at a time; None: all;
    checkpointing: recompute activations in backward. chosen: the settings that were left to be chosen, and may be lowered.
    """

    micro_batch: int | None = None
    decode_batch: int | None = None
    checkpointing: bool | None = None
    chosen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.chosen:
            self.chosen = tuple(
                name
                for name in ("decode_batch", "micro_batch", "checkpointing")
                if getattr(self, name) is None
            )
        self.checkpointing = bool(self.checkpointing)

    def lower(self, batch: int) -> bool:
        """The next setting down, in the order of what it costs: half of the pictures, half of the samples, recomputation; False at the end."""
        rows = self.micro_batch or batch
        for name, now in (
            ("decode_batch", self.decode_batch or min(rows, batch)),
            ("micro_batch", rows),
        ):
            if name in self.chosen and now > 1:
                setattr(self, name, -(-now // 2))
                return True
        if "checkpointing" in self.chosen and not self.checkpointing:
            self.checkpointing = True
            return True
        return False

    def within(
        self, call: Callable[[], Any], batch: int, told: Callable[[BaseException], BaseException]
    ) -> Any:
        """The result of a call, made again with the limits lowered as often as the device runs out of memory in it; `told` makes the
        error for when nothing is left to lower."""
        while True:
            try:
                return call()
            except RuntimeError as error:  # torch.OutOfMemoryError is one
                if not out_of_memory(error):
                    raise
                failed = error.with_traceback(None)
            gc.collect()  # what the failed attempt held
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if not self.lower(batch):
                raise told(failed) from failed


@dataclass
class GraphSizes:
    """Bytes that the graphs of the two halves hold, measured the first time that both are built one after the other.

    network, reward: bytes, None before; checkpointing: whether least memory was asked for.
    """

    network: int | None = None
    reward: int | None = None
    checkpointing: bool = False

    @staticmethod
    def of(
        backbone, xt: Tensor, reward, checkpointing: bool, decode_batch: int | None = None
    ) -> GraphSizes:
        """The sizes that a backbone remembers for latents of this shape and precision, and for a reward as long as that lives."""
        key = (tuple(xt.shape), xt.dtype, checkpointing, decode_batch)
        known = backbone.__dict__.setdefault("_graph_sizes", {}).setdefault(
            key, weakref.WeakKeyDictionary()
        )
        sizes = GraphSizes(checkpointing=checkpointing)
        try:
            return known.setdefault(reward, sizes)
        except TypeError:  # a reward that cannot be remembered is measured each time
            return sizes

    def fit(self, device) -> bool:
        """Whether both graphs fit into free memory together. Not before they were measured, nor with checkpointing, which asks for
        the least memory."""
        if self.checkpointing or self.network is None or self.reward is None:
            return False
        return MARGIN * (self.network + self.reward) <= free_bytes(device)

    @contextlib.contextmanager
    def measured(self, half: str, known: Callable[[], set[int]]) -> Iterator[None]:
        """Inside, the saved bytes of a half are counted, once, but for the `known` storages: weights are there anyway."""
        if self.checkpointing or getattr(self, half) is not None:
            yield
            return
        with SavedBytes(known()) as saved:
            yield
        setattr(self, half, saved.peak)
