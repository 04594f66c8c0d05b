"""How much memory a run will need, before it runs.

    dk.estimate(backbone, dk.DATE(reward), batch=4)

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
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from .errors import has_numbers, whole
from .methods import Fixed, Method
from .rewards.base import as_reward, decoder_of
from .sampler import Sampler
from .types import Conditioning, State

aten = torch.ops.aten

GIB = 2**30
PROMPT = "a red circle left of a blue square"  # any prompt: all are padded to one length


@dataclass(frozen=True)
class Estimate:
    """What a run needs beside and with its weights, in bytes, and the operations of its steps.

    weights: of network, decoder, text encoders and rewards; plain, updated: what a step without and
    with the method's own work takes; decoding: what the pictures at the end take.
    """

    weights: int
    plain: int
    updated: int
    decoding: int
    plain_operations: int
    updated_operations: int

    @property
    def total(self) -> int:
        """The weights, with the costliest step or the decoding, whichever takes more."""
        return self.weights + max(self.plain, self.updated, self.decoding)

    def __str__(self) -> str:
        more = self.updated_operations / self.plain_operations
        names = ("weights", "plain", "updated", "decoding", "total")
        sizes = [f"{name} {getattr(self, name) / GIB:.2f} GiB" for name in names]
        return f"{', '.join(sizes)}; an updated step takes {more:.2f} times the operations"


def estimate(
    backbone,
    method: Method | None = None,
    batch: int = 1,
    *,
    height: int | None = None,
    width: int | None = None,
    **settings,
) -> Estimate:
    """The memory that a batch will need. settings: those of a `Sampler`.

    Counted is what PyTorch's allocator is asked for; workspaces of kernels, fragmentation and the
    CUDA context (some 0.5 GiB) come on top. The prompt is encoded for real. Raises what a `Sampler`
    raises for bad settings, and ValueError for a reward that needs the numbers in a picture.
    """
    sampler = Sampler(backbone, method, **settings)
    count = whole("batch", batch, 1)
    with torch.no_grad():
        state = sampler.init([PROMPT] * count, seeds=range(count), height=height, width=width)
    plain = measure(sampler.replace(method=Fixed()).step, state)
    decoding = measure(lambda blank: sampler.decode(blank.xt), state)
    updated = _updated(sampler, state) if sampler.method.stages else plain
    return Estimate(
        _weight_bytes(sampler.backbone, sampler.method),
        plain.peak,
        max(plain.peak, updated.peak),
        decoding.peak,
        plain.operations,
        updated.operations,
    )


def _updated(sampler: Sampler, state: State) -> Counter:
    """A step in which the method acts."""
    parts = getattr(sampler.method, "parts", (sampler.method,))
    steps = [set(part.when.indices(sampler.num_steps)) for part in parts if hasattr(part, "when")]
    i = min(set.intersection(*steps) or set.union(*steps)) if steps else 0
    state = state.replace(i=i, t=sampler.solver_for(state.xt.shape).timesteps[i])
    rewards = [part.reward for part in parts if part.reward is not None]
    for reward in rewards:  # what a reward makes once and keeps is made of numbers
        decoder_of(reward, sampler.backbone)
        device = "cpu" if sampler.backbone.device.type == "meta" else sampler.backbone.device
        as_reward(reward)(torch.full((1, 3, 64, 64), 0.5, device=device), [PROMPT])
    try:
        return measure(sampler.step, state)
    except Exception as error:
        what = " or ".join(as_reward(reward).name for reward in rewards) or repr(sampler.method)
        raise ValueError(
            f"{what} cannot be computed without numbers, so its memory is not known before the run "
            f"({type(error).__name__}: {str(error).splitlines()[0][:200]})"
        ) from error


def measure(call: Callable[[State], Any], state: State) -> Counter:
    """Run a call on a state without numbers, and count what it needs."""
    with FakeTensorMode(allow_non_fake_inputs=True), _FusedAttention():
        cond, uncond = _blank(state.cond), _blank(state.uncond)
        xt = torch.empty_like(state.xt)
        blank = state.replace(xt=xt, cond=cond, cond_org=cond, uncond=uncond)
        with Counter(fake=True) as counter:
            call(blank)
    return counter


def _blank(value: Any) -> Any:
    """An embedding of the same shapes, without numbers."""
    if isinstance(value, Tensor):
        return torch.empty_like(value)
    if isinstance(value, Conditioning):
        return value.replace(**{name: _blank(x) for name, x in vars(value).items()})
    if isinstance(value, dict):
        return {name: _blank(x) for name, x in value.items()}
    return value


def flops(call: Callable[[], Any]) -> int:
    """The floating-point operations of a call that runs for real, two for a multiply-add."""
    with Counter() as counter:
        call()
    return counter.operations


class Counter(TorchDispatchMode):
    """Inside, counts the bytes of new tensors that live (`live`, `peak`) and `operations`.

    Operations are those that PyTorch has a formula for: matrix products, convolutions, attention.
    """

    def __init__(self, fake: bool = False) -> None:
        super().__init__()
        self._fake = fake
        self.live = self.peak = self.operations = 0
        self._storages: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self._fake:
            tensors = _tensors((args, kwargs))
            if tensors and all(_is_table(x) for x in tensors):
                with unset_fake_temporarily():
                    return func(*args, **kwargs)
            if func is aten.equal.default:
                return False  # an embedding that moved is another one
            if func is aten._local_scalar_dense.default and args[0].dtype == torch.bool:
                return True  # what a method asks, such as whether anything moved
        out = func(*args, **kwargs)
        formula = _FORMULAS.get(func._overloadpacket)
        if formula is not None:
            self.operations += formula(*args, **kwargs, out_val=out)
        if not any(r.alias_info for r in func._schema.returns):  # a view is no new memory
            for x in _tensors(out):
                self._count(x.untyped_storage())
        return out

    def _count(self, storage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._storages:
            self._storages.add(key)
            weakref.finalize(storage, self._forget, key, size)
            self.live += size
            self.peak = max(self.peak, self.live)

    def _forget(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self.live -= size


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def _is_table(x: Tensor) -> bool:
    """Whether a tensor is one of a scheduler's tables, whose numbers are needed and small."""
    return x.device.type == "cpu" and has_numbers(x) and x.numel() <= 4096


class _FusedAttention(TorchFunctionMode):
    """Inside, attention on the meta device is a GPU's fused one, which keeps no (L, L) matrix."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        attention = torch.nn.functional.scaled_dot_product_attention
        if func is not attention or args[0].device.type != "meta":
            return func(*args, **kwargs)
        return _efficient(*args, **kwargs)


def _efficient(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **others):
    if attn_mask is not None:
        attn_mask = attn_mask.to(q.dtype).expand(*q.shape[:3], k.shape[2])
    backward = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    return aten._scaled_dot_product_efficient_attention(
        q, k, v, attn_mask, backward, dropout_p, is_causal, scale=scale
    )[0]


def _cpu_attention(q, k, v, *args, **kwargs) -> int:
    return sdpa_flop_count(q.shape, k.shape, v.shape)


def _cpu_attention_backward(grad, q, k, v, *args, **kwargs) -> int:
    return sdpa_backward_flop_count(grad.shape, q.shape, k.shape, v.shape)


_FORMULAS = flop_registry | {  # with attention on a CPU, which PyTorch's own list lacks
    aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _cpu_attention_backward,
}


def _weight_bytes(*owners: Any) -> int:
    """Bytes of the weights that objects hold, however deep."""
    weights, waiting, seen = {}, list(owners), set()
    while waiting:
        owner = waiting.pop()
        if id(owner) in seen or isinstance(owner, type):
            continue
        seen.add(id(owner))
        if isinstance(owner, torch.nn.Module):
            for x in (*owner.parameters(), *owner.buffers()):
                weights[id(x)] = x.numel() * x.element_size()
        elif isinstance(owner, (tuple, list)):
            waiting += owner
        elif hasattr(owner, "__dict__"):
            waiting += vars(owner).values()
    return sum(weights.values())
