"""How much memory a run will need, before it runs: `dk.estimate(backbone, method, batch=4)`.

The sampler's own step and decoding run on PyTorch's fake tensors, which have shapes, a precision
and a life, but no numbers and no memory. The bytes that are alive at once are added up.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .errors import has_numbers
from .methods import Fixed, Method
from .rewards.base import as_reward
from .sampler import Sampler
from .types import Conditioning, State

aten = torch.ops.aten

PROMPT = "a red circle left of a blue square"  # any prompt: all are padded to one length


@dataclass(frozen=True, repr=False)
class Estimate:
    """What a run needs, in bytes.

    weights: of network, decoder, text encoders and rewards;
    plain, updated: what a step without and with the method's own work takes beside them;
    decoding: what the pictures at the end take.
    """

    weights: int
    plain: int
    updated: int
    decoding: int

    @property
    def total(self) -> int:
        """The weights, with the costliest step or the decoding, whichever takes more."""
        return self.weights + max(self.plain, self.updated, self.decoding)

    def __repr__(self) -> str:
        sizes = {"total": self.total, **vars(self)}
        told = ", ".join(f"{name} {size / 2**20:,.4g} MiB" for name, size in sizes.items())
        return f"<Estimate: {told}>"


def estimate(
    backbone: Any,
    method: Method | None = None,
    batch: int = 1,
    *,
    height: int | None = None,
    width: int | None = None,
    **settings: Any,
) -> Estimate:
    """The memory that a batch will need. settings: those of a `Sampler`.

    Workspaces of kernels, fragmentation and the CUDA context (some 0.5 GiB) come on top. Raises
    ValueError for a reward that needs the numbers in a picture.
    """
    sampler = Sampler(backbone, method, **settings)
    with torch.no_grad():
        state = sampler.init([PROMPT] * batch, seeds=range(batch), height=height, width=width)
    fixed = sampler.replace(method=Fixed())
    fixed.solver_for(state.xt.shape)  # whose tables are numbers, as those that `init` made
    plain = peak(fixed.step, state)
    updated = max(plain, _updated(sampler, state))
    decoding = peak(lambda blank: sampler.decode(blank.xt), state)
    return Estimate(_weight_bytes(sampler.backbone, sampler.method), plain, updated, decoding)


def _updated(sampler: Sampler, state: State) -> int:
    """The peak of a step in which the method acts."""
    parts = getattr(sampler.method, "parts", (sampler.method,))
    for part in parts:
        if part.reward is not None:  # what a reward makes once and keeps is made of numbers
            example = torch.full((1, 3, 64, 64), 0.5, device=sampler.backbone.device)
            as_reward(part.reward)(example, [PROMPT])
    schedules = [part.when for part in parts if hasattr(part, "when")]
    kinds: dict[tuple, int] = {}  # which parts act -> the first step in which these do
    for i in range(sampler.num_steps):
        kinds.setdefault(tuple(when(i, sampler.num_steps) for when in schedules), i)
    timesteps = sampler.solver_for(state.xt.shape).timesteps
    try:
        return max(peak(sampler.step, state.replace(i=i, t=timesteps[i])) for i in kinds.values())
    except Exception as error:
        raise ValueError(f"{sampler.method!r} needs numbers: {error!s:.300}") from error


def peak(call: Callable[[State], Any], state: State) -> int:
    """The most bytes of new tensors that live at once in a call on a state without numbers."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        cond, uncond = _blank(state.cond), _blank(state.uncond)
        blank = {"xt": torch.empty_like(state.xt), "cond": cond, "cond_org": cond, "uncond": uncond}
        with _Living() as living:
            call(state.replace(**blank))
    return living.peak


def _blank(cond: Conditioning | None) -> Conditioning | None:
    if cond is None:
        return None
    pooled = None if cond.pooled is None else torch.empty_like(cond.pooled)
    return cond.replace(sequence=torch.empty_like(cond.sequence), pooled=pooled)


class _Living(TorchDispatchMode):
    """Inside, counts the bytes of new tensors that live, `live`, and their `peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._sizes: dict[int, int] = {}  # by the address of a storage

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if inputs and all(_is_table(x) for x in inputs):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if func is aten.equal.default:
            return False  # an embedding that moved is another one
        if func is aten._local_scalar_dense.default and args[0].dtype == torch.bool:
            return True  # what a method asks, such as whether anything moved
        out = func(*args, **kwargs)
        if not any(r.alias_info for r in func._schema.returns):  # a view is no new memory
            for x in tree_leaves(out):
                if isinstance(x, Tensor):
                    self._count(x.untyped_storage())
        return out

    def _count(self, storage) -> None:
        if storage._cdata not in self._sizes:
            self._sizes[storage._cdata] = storage.nbytes()
            weakref.finalize(storage, self._forget, storage._cdata)
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)

    def _forget(self, key: int) -> None:
        self.live -= self._sizes.pop(key)


def _is_table(x: Tensor) -> bool:
    """Whether a tensor's numbers are needed: a scheduler's table, or whole numbers as of a mask."""
    whole = not (x.is_floating_point() or x.is_complex())
    return has_numbers(x) and (whole or (x.device.type == "cpu" and x.numel() <= 4096))


def _weight_bytes(*owners: Any) -> int:
    """Bytes of the weights that objects hold, however deep."""
    weights, waiting, seen = {}, list(owners), set()
    while waiting:
        owner = waiting.pop()
        if isinstance(owner, torch.nn.Module):
            weights |= {id(x): x.nbytes for x in (*owner.parameters(), *owner.buffers())}
        elif isinstance(owner, (tuple, list)):
            waiting += owner
        elif id(owner) not in seen and not isinstance(owner, type):
            seen.add(id(owner))
            waiting += getattr(owner, "__dict__", {}).values()
    return sum(weights.values())
