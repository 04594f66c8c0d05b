"""How much memory a run will need, before it runs: one step and the decoding at the end, walked through without numbers.

    dk.estimate(backbone, dk.DATE(reward), batch=4)

PyTorch's fake tensors have shapes, precision and a life but no memory. The same calls as in a step (forward passes, decoding, reward,
both backwards) are made on them, and the bytes that are alive at once are added up.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from .backbones import FAMILIES, Backbone, wrap
from .errors import whole
from .memory import Alive, GraphSizes, free_bytes, fused_attention, modules_of
from .methods import Fixed, Method
from .rewards.base import as_reward, decoder_of
from .types import Conditioning

GIB = 2**30
WORLD = "a red circle left of a blue square"  # any prompt: all are padded to one length


@dataclass(frozen=True)
class Estimate:
    """Bytes that a step needs at its peak beside and with the weights, and its floating-point operations.

    weights: of network, decoder, text encoders and rewards; plain, updated: what a step without and with an update adds to them at its
    peak, updated None for a method without a reward; decoding: what the pictures at the end take; network_graph, reward_graph: what the
    two graphs hold when they wait for backward; plain_operations, updated_operations: of a step without and with an update, two for a
    multiply-add, as PyTorch counts them (products of matrices, convolutions, attention); keep_graph, micro_batch, decode_batch,
    checkpointing: the settings it holds for; free: what the device can give now, beside the weights that are there already.
    """

    weights: int
    plain: int
    updated: int | None
    decoding: int
    network_graph: int
    reward_graph: int
    plain_operations: int
    updated_operations: int | None
    keep_graph: bool
    micro_batch: int | None
    decode_batch: int | None
    checkpointing: bool
    free: int

    @property
    def step(self) -> int:
        """What the costliest step adds to the weights."""
        return max(self.plain, self.updated or 0)

    @property
    def total(self) -> int:
        """Weights, and the costliest step or the decoding at the end, whichever takes more."""
        return self.weights + max(self.step, self.decoding)

    @property
    def fits(self) -> bool:
        """Whether all of that, beside the weights, fits into what is free now."""
        return max(self.step, self.decoding) <= self.free

    def __str__(self) -> str:
        gib = lambda n: f"{n / GIB:.2f} GiB"
        updated = "" if self.updated is None else f", with an update {gib(self.updated)}"
        options = ", ".join(
            f"{name}={getattr(self, name)}"
            for name in ("keep_graph", "micro_batch", "decode_batch", "checkpointing")
        )
        work = (
            ""
            if self.updated is None
            else f"; {self.updated_operations / self.plain_operations:.2f} times its operations"
        )
        step = f"a plain step {gib(self.plain)}{updated}{work}; pictures at the end {gib(self.decoding)}"
        return f"weights {gib(self.weights)}; {step}; free {gib(self.free)} ({options})"


def estimate(
    backbone,
    method: Method | None = None,
    batch: int = 1,
    *,
    height: int | None = None,
    width: int | None = None,
    guidance_scale: float | None = None,
    micro_batch: int | None = None,
    decode_batch: int | None = None,
    checkpointing: bool = False,
) -> Estimate:
    """The memory that a batch will need, counted on tensors that take none; a `Sampler`'s settings as there.

    Counted is what PyTorch's allocator is asked for; workspaces of kernels, fragmentation and the CUDA context (some 0.5 GiB) come on
    top; of Universal Guidance, one forward guidance taken once. The prompt is encoded for real. Raises TypeError for what is no method,
    ValueError for settings that a `Sampler` would not take, and for a reward that needs the numbers in a picture to be computed.
    """
    backbone, method, batch = (
        _backbone(backbone),
        Fixed() if method is None else method,
        whole("batch", batch, 1),
    )
    if not isinstance(method, Method):
        raise TypeError(
            f"method must be a method such as dk.Fixed() or dk.DATE(reward), got {method!r}"
        )
    micro_batch = None if micro_batch is None else whole("micro_batch", micro_batch, 1)
    decode_batch = None if decode_batch is None else whole("decode_batch", decode_batch, 1)
    if checkpointing not in (True, False):
        raise ValueError(f"checkpointing must be True or False, got {checkpointing!r}")
    w = backbone.recommended.guidance_scale if guidance_scale is None else guidance_scale
    reward, shape = method.reward, backbone.latent_shape(height, width)
    conds = conditionings(backbone, batch, w)
    for each in method.rewards.values():
        prepare(each, backbone)
    walk = Walk(backbone, reward, shape, w, micro_batch or batch, decode_batch, checkpointing)
    plain, _ = walk.counted(lambda: walk.plain(conds, batch))
    work = walk.operations(lambda: walk.plain(conds, batch))
    decoding, _ = walk.counted(lambda: walk.pictured(batch, decode_batch))
    found = Estimate(
        weight_bytes(backbone, *method.rewards.values()),
        plain,
        None,
        decoding,
        0,
        0,
        work,
        None,
        False,
        micro_batch,
        decode_batch,
        checkpointing,
        free_bytes(backbone.device),
    )
    if reward is None:
        return found
    network, reward_graph = walk.graphs(conds, batch)
    keep = method.keep_graph
    if keep is None:
        keep = GraphSizes(network, reward_graph, checkpointing).fit(backbone.device)
    call = lambda: walk.acted(method.rewards, conds, batch, keep)
    return replace(
        found,
        updated=max(walk.counted(call)[0], plain),
        network_graph=network,
        reward_graph=reward_graph,
        keep_graph=keep,
        updated_operations=walk.operations(call),
    )


class Walk:
    """The calls of a step on fake tensors."""

    def __init__(
        self,
        backbone,
        reward,
        shape,
        w: float,
        part: int,
        pictures: int | None,
        checkpointing: bool,
    ) -> None:
        self.backbone, self.reward, self.shape, self.w = backbone, reward, tuple(shape), w
        self.part, self.pictures, self.checkpointing = (
            part,
            min(pictures or part, part),
            checkpointing,
        )

    def counted(self, call: Callable[[], Any]) -> tuple[int, int]:
        """The highest number of bytes alive during a call, and those alive after it while its result is held."""
        from torch._subclasses.fake_tensor import FakeTensorMode

        with self._settled(), FakeTensorMode(allow_non_fake_inputs=True), Alive() as alive:
            held = call()
            after = alive.now
        del held
        return alive.peak, after

    def operations(self, call: Callable[[], Any]) -> int:
        """Floating-point operations of a call; a walk of its own, as PyTorch's counter holds on to tensors."""
        from torch._subclasses.fake_tensor import FakeTensorMode

        with self._settled(), FakeTensorMode(allow_non_fake_inputs=True):
            return flops(call)

    @contextlib.contextmanager
    def _settled(self) -> Iterator[None]:
        with self.backbone.checkpointing(self.checkpointing), fused_attention(self.backbone.device):
            yield

    def plain(self, conds: tuple[Conditioning, ...], batch: int) -> Tensor:
        """A step without an update: both branches at once where the family does so, no graph."""
        with torch.no_grad():
            return self._both(self._latents(batch), tuple(_faked(c) for c in conds))

    def graphs(self, conds: tuple[Conditioning, ...], batch: int) -> tuple[int, int]:
        """Bytes that the network's and the reward's graph hold for a part of the batch."""
        rows, pictures = min(self.part, batch), min(self.pictures, batch)
        held: dict[str, int] = {}

        def network():
            with torch.enable_grad():
                return self._ahead(self._latents(rows), _faked(conds[-1])[:rows])

        def reward():
            with torch.enable_grad():
                return self._judged(self._latents(pictures).float().requires_grad_(), pictures)

        for name, call in (("network", network), ("reward", reward)):
            held[name] = self.counted(call)[1]
        return held["network"], held["reward"]

    def pictured(self, batch: int, at_once: int | None) -> Tensor:
        """The pictures at the end of a run."""
        with torch.no_grad():
            return torch.cat(
                [
                    self.backbone.decode(part)
                    for part in self._latents(batch).split(at_once or batch)
                ]
            )

    def acted(
        self, rewards: Mapping[str, Any], conds: tuple[Conditioning, ...], batch: int, keep: bool
    ) -> list[Tensor]:
        """A step in which rewards' gradients move the embedding, the prediction, or both: `Method.rewards`."""
        asking = lambda stage: Walk(
            self.backbone,
            rewards[stage],
            self.shape,
            self.w,
            self.part,
            self.pictures,
            self.checkpointing,
        )
        held = [
            asking("condition").updated(conds, batch, keep)
            if "condition" in rewards
            else self.plain(conds, batch)
        ]
        return [*held, asking("predict").pushed(conds, batch)] if "predict" in rewards else held

    def pushed(self, conds: tuple[Conditioning, ...], batch: int) -> Tensor:
        """The gradient of the reward in xt, through both branches."""
        xt, conds = self._latents(batch), tuple(_faked(c) for c in conds)
        grads = []
        for n in range(0, batch, self.part):
            rows = slice(n, n + self.part)
            leaf, wanted = xt[rows].detach().requires_grad_(), self._decoded(xt[rows])
            with torch.enable_grad():
                out = self._both(leaf, tuple(c[rows] for c in conds))
                grads.append(torch.autograd.grad(out, leaf, wanted.to(out.dtype))[0])
        return torch.cat(grads)

    def updated(self, conds: tuple[Conditioning, ...], batch: int, keep: bool) -> Tensor:
        """A step with an update, as `Denoiser.look` and the prediction after it make it."""
        xt, conds = self._latents(batch), tuple(_faked(c) for c in conds)
        out_u = None
        if len(conds) > 1:
            with torch.no_grad():
                out_u = self._predict(xt, conds[0])
        grads = [
            self._halves(xt[n : n + self.part], conds[-1][n : n + self.part], keep)
            for n in range(0, batch, self.part)
        ]
        moved = conds[-1].replace(sequence=conds[-1].sequence + torch.cat(grads))
        with torch.no_grad():
            out = self._predict(xt, moved)
            return out if out_u is None else out_u + self.w * (out - out_u)

    def _halves(self, xt: Tensor, cond: Conditioning, keep: bool) -> Tensor:
        with torch.enable_grad():
            if keep:
                out, leaf = self._ahead(xt, cond)
            else:
                with torch.no_grad():
                    self._predict(xt, cond)
            grad = self._decoded(xt)
            if not keep:
                out, leaf = self._ahead(xt, cond)
            return torch.autograd.grad(out, leaf, grad.to(out.dtype))[0]

    def _decoded(self, xt: Tensor) -> Tensor:
        """The gradient of the reward in x0bar, as many pictures at a time as are decoded at once."""
        found = []
        for part in torch.zeros_like(xt, dtype=torch.promote_types(xt.dtype, torch.float32)).split(
            self.pictures
        ):
            leaf = part.detach().requires_grad_()
            with torch.enable_grad():
                found.append(torch.autograd.grad(self._judged(leaf, len(leaf)).sum(), leaf)[0])
        return torch.cat(found)

    def _both(self, xt: Tensor, conds: tuple[Conditioning, ...]) -> Tensor:
        """The guided prediction: both branches at once where the family does so."""
        if len(conds) == 1:
            return self._predict(xt, conds[0])
        if self.backbone.one_batch:
            out_u, out = self._predict(torch.cat([xt, xt]), Conditioning.cat(list(conds))).chunk(2)
        else:
            out_u, out = (self._predict(xt, c) for c in conds)
        return out_u + self.w * (out - out_u)

    def _ahead(self, xt: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        leaf = cond.sequence.detach().requires_grad_()
        return self._predict(xt, cond.replace(sequence=leaf)), leaf

    def _judged(self, latents: Tensor, rows: int) -> Tensor:
        images = decoder_of(self.reward, self.backbone)(latents)
        images = images.float() if images.dtype in (torch.float16, torch.bfloat16) else images
        try:
            return as_reward(self.reward).forward(images, [WORLD] * rows)
        except Exception as error:
            raise ValueError(
                f"{as_reward(self.reward).name} cannot be walked through without numbers, so its memory is not known "
                f"before the run ({type(error).__name__}: {str(error).splitlines()[0][:200]})"
            ) from error

    def _predict(self, xt: Tensor, cond: Conditioning) -> Tensor:
        if cond.extras.get("one branch") is not None:
            cond = self.backbone.with_guidance(
                cond.replace(extras={k: v for k, v in cond.extras.items() if k != "one branch"}),
                self.w,
            )
        return self.backbone.predict(
            xt, 500.0 if self.backbone.dtype.is_floating_point else 500, cond
        )

    def _latents(self, batch: int) -> Tensor:
        return torch.zeros(
            batch, *self.shape, device=self.backbone.device, dtype=self.backbone.dtype
        )


def flops(call: Callable[[], object]) -> int:
    """Floating-point operations of a call, two for a multiply-add, as PyTorch counts them: matrix products, convolutions, attention."""
    from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

    ahead, back = (
        getattr(torch.ops.aten, f"_scaled_dot_product_flash_attention_for_cpu{part}")
        for part in ("", "_backward")
    )
    counter = FlopCounterMode(
        display=False,
        custom_mapping={  # which PyTorch's own list lacks
            ahead: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
            back: lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v),
        },
    )
    # Only the sum is wanted; following modules would put hooks on the leaves that the gradient is taken in, which PyTorch forbids.
    counter.mod_tracker = SimpleNamespace(
        parents={"Global"}, __enter__=lambda: None, __exit__=lambda: None
    )
    with counter:
        call()
    return counter.get_total_flops()


def conditionings(backbone, batch: int, w: float) -> tuple[Conditioning, ...]:
    """The branches' real text embeddings, the conditional one last."""
    with torch.no_grad():
        cond, uncond = backbone.encode([WORLD]), backbone.encode([None], negative=True)
    whole_batch = lambda c: Conditioning.cat([c] * batch)
    if uncond is None:
        return (whole_batch(cond.replace(extras=cond.extras | {"one branch": torch.ones(1)})),)
    return (whole_batch(cond),) if w == 1 else (whole_batch(uncond), whole_batch(cond))


def _backbone(given):
    if isinstance(given, Backbone):
        return given
    if type(given).__name__ in FAMILIES:
        return wrap(given)
    raise TypeError(
        f"dk.estimate takes a backbone from dk.load or dk.wrap, or a diffusers pipeline, got {type(given).__name__}"
    )


def _faked(cond: Conditioning) -> Conditioning:
    """The embedding as tensors of the mode that is active: same shapes, no numbers."""
    like = lambda x: None if x is None else torch.empty_like(x)
    return cond.replace(
        sequence=like(cond.sequence),
        pooled=like(cond.pooled),
        mask=like(cond.mask),
        extras={name: like(value) for name, value in cond.extras.items()},
    )


def prepare(reward, backbone) -> None:
    """What a reward or its decoder makes once and keeps must be made of numbers, before the walk."""
    with torch.no_grad():
        image = torch.full(
            (1, 3, 64, 64), 0.5, device=backbone.device if backbone.device.type != "meta" else "cpu"
        )
        as_reward(reward)(image, [WORLD])
        if hasattr(reward, "decoder"):
            reward.decoder(backbone)(
                torch.zeros(1, *backbone.latent_shape(), device=backbone.device)
            )


def weight_bytes(backbone, *rewards) -> int:
    """Bytes of all weights that are loaded."""
    tensors = {
        id(x): x
        for module in modules_of(backbone, *rewards)
        for x in (*module.parameters(), *module.buffers())
    }
    return sum(x.numel() * x.element_size() for x in tensors.values())
