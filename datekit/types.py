"""The vocabulary of the package: what goes into a step and what comes out, as frozen dataclasses.

Shapes: B samples, L text positions, D embedding width, C x H x W latent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


class Record:
    """A frozen dataclass with `replace`, compared by identity because tensors have no truth value."""

    def replace(self, **changes):
        """A copy with some fields changed."""
        return replace(self, **changes)


@dataclass(frozen=True, eq=False)
class Conditioning(Record):
    """What a text encoder says of B prompts; `sequence` is the paper's c.

    sequence: (B, L, D); pooled: (B, P) or None; mask: (B, L) bool, True where a position may move, None for
    everywhere; tokens: B tuples of L words, as the encoder saw them; extras: tensors (B, ...) that a family
    needs beside them.
    """

    sequence: Tensor
    pooled: Tensor | None = None
    mask: Tensor | None = None
    tokens: tuple[tuple[str, ...], ...] = ()
    extras: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.sequence.shape[0]

    def same(self, other: Conditioning) -> bool:
        """Whether both hold equal numbers."""
        import torch

        both = [
            (self.sequence, other.sequence),
            (self.pooled, other.pooled),
            (self.mask, other.mask),
        ]
        both += [
            (self.extras.get(name), other.extras.get(name))
            for name in {*self.extras, *other.extras}
        ]
        return all(
            a is b or (a is not None and b is not None and torch.equal(a, b)) for a, b in both
        )

    def __getitem__(self, rows: slice) -> Conditioning:
        """Some of the samples."""
        pick = lambda x: None if x is None else x[rows]
        return Conditioning(
            self.sequence[rows],
            pick(self.pooled),
            pick(self.mask),
            self.tokens[rows],
            {name: value[rows] for name, value in self.extras.items()},
        )

    @staticmethod
    def cat(parts: list[Conditioning]) -> Conditioning:
        """Several as one batch."""
        import torch

        join = lambda values: None if values[0] is None else torch.cat(values)
        return Conditioning(
            join([p.sequence for p in parts]),
            join([p.pooled for p in parts]),
            join([p.mask for p in parts]),
            tuple(row for p in parts for row in p.tokens),
            {name: join([p.extras[name] for p in parts]) for name in parts[0].extras},
        )


@dataclass(frozen=True, eq=False)
class State(Record):
    """Sampling paused before step i; everything the rest of the run depends on, and nothing else.

    i: the step to come; xt: (B, C, H, W) noisy latent; t: the timestep that step i visits (0 once finished); cond: the running
    embedding; cond_org: the encoder's output; uncond: the negative branch, None where guidance needs none;
    prompts, seeds: one a sample; memory: what a multistep solver keeps of its past; noise: (T, B, C, H, W) step noise
    to use instead of the seeds' own, or None; extras: what a sampler of another kind carries along, each a
    tensor (B, ...) or a `Conditioning`.
    """

    xt: Tensor
    i: int
    t: float
    cond: Conditioning
    cond_org: Conditioning
    uncond: Conditioning | None
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    memory: dict[str, Any] = field(default_factory=dict)
    noise: Tensor | None = None
    extras: dict[str, Any] = field(default_factory=dict)

    @property
    def c(self) -> Tensor:
        """The running text embedding, (B, L, D)."""
        return self.cond.sequence

    @property
    def c_org(self) -> Tensor:
        """The text encoder's output, (B, L, D)."""
        return self.cond_org.sequence

    def __len__(self) -> int:
        return self.xt.shape[0]

    def __getitem__(self, rows: slice) -> State:
        """Some of the samples; solvers' memory is shared, so a slice serves looking, not stepping."""
        return self.replace(
            xt=self.xt[rows],
            cond=self.cond[rows],
            cond_org=self.cond_org[rows],
            uncond=None if self.uncond is None else self.uncond[rows],
            prompts=self.prompts[rows],
            seeds=self.seeds[rows],
            noise=None if self.noise is None else self.noise[:, rows],
            extras={name: value[rows] for name, value in self.extras.items()},
        )


@dataclass(frozen=True, eq=False)
class Prediction(Record):
    """The network's answer at (xt, c): x0bar is the guided mean prediction, Eq. 11; all (B, C, H, W).

    out: the guided network output in the model's own parametrisation, which is what the solver takes; eps: the same as
    noise, whatever the parametrisation; eps_u, eps_c: its two branches, eps_u None without a second one; out_u: the
    unconditional output; look: what a method saw before it changed the prediction, None where none did; notes: what it
    has to say of it, tensors (B, ...).
    """

    x0bar: Tensor
    out: Tensor
    eps: Tensor
    eps_c: Tensor
    eps_u: Tensor | None
    out_u: Tensor | None = None
    look: RewardGradient | None = None
    notes: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, repr=False)
class RewardGradient(Record):
    """The state of affairs at (xt, c): x0bar, its reward and how the reward depends on c. All detached.

    i, t: the step and its timestep; prompts, seeds: one a sample; c: (B, L, D), where it was evaluated; x0bar:
    (B, C, H, W), Eq. 11; h: (B,); grad_x0bar: (B, C, H, W), the first half of the chain rule; grad: (B, L, D) = grad_c h_t;
    grad_pooled: (B, P), the same of the pooled vector, where a method moves it. Without a reward the last four, and what is
    derived from them, are None. terms: of a combined reward, the unweighted value (B,) of each part, by name; decode: the
    backbone's, for pictures.
    """

    i: int
    t: float
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    c: Tensor
    x0bar: Tensor
    h: Tensor | None = None
    grad_x0bar: Tensor | None = None
    grad: Tensor | None = None
    grad_pooled: Tensor | None = None
    terms: dict[str, Tensor] = field(default_factory=dict)
    decode: Callable[[Tensor], Tensor] | None = None

    @property
    def grad_norm(self) -> Tensor | None:
        """||grad_c h_t|| per sample, (B,)."""
        return None if self.grad is None else norm(self.grad)

    @property
    def direction(self) -> Tensor | None:
        """eps_hat = grad / ||grad|| per sample, (B, L, D); zero where the gradient is exactly zero."""
        return None if self.grad is None else unit(self.grad)

    @property
    def zero_gradient(self) -> Tensor | None:
        """Which samples have a gradient of exactly zero, so that there is no direction to move in; (B,) bool."""
        return None if self.grad is None else ~self.grad.flatten(1).any(1)

    @property
    def images(self) -> list:
        """x0bar as PIL images."""
        return to_pil(self.decode(self.x0bar))

    def __repr__(self) -> str:
        h = "None" if self.h is None else "[" + ", ".join(f"{v:.4g}" for v in self.h.tolist()) + "]"
        return f"{type(self).__name__}(i={self.i}, t={self.t:g}, samples={len(self.prompts)}, h={h}{self._more()})"

    def _more(self) -> str:
        return ""

    def _repr_html_(self) -> str:
        from .display import look_html

        return look_html(self)


@dataclass(frozen=True, eq=False, repr=False)
class StepInfo(RewardGradient):
    """What happened in one step.

    `x0bar, h, grad_x0bar, grad, direction` belong together: they were taken at the same embedding, the one before the
    update. at: (B, L, D), that embedding (c_org for anchor="original"); c: (B, L, D), what the network was then fed; xt:
    (B, C, H, W), before the step (before its last repetition, where a method repeats steps); x0bar_hat: x0bar(xt, c),
    pushed by the method where it pushes predictions, what the solver used, equal to x0bar where nothing moved;
    updated: whether any sample's embedding was moved in this step; distance: (B,) = ||c - c_org||; eps_u, eps_c: the
    branches as noise; notes: what the method has to say, tensors (B, ...); with a network in half precision also `distance_fed` (B,), what
    is left of `distance` once the embedding is rounded to that precision: entries of c that move by less than half a unit of it stay.
    """

    at: Tensor | None = None
    xt: Tensor | None = None
    x0bar_hat: Tensor | None = None
    updated: bool = False
    distance: Tensor | None = None
    eps_u: Tensor | None = None
    eps_c: Tensor | None = None
    notes: dict[str, Tensor] = field(default_factory=dict)

    def _more(self) -> str:
        return f", updated={self.updated}"


def norm(x: Tensor) -> Tensor:
    """Euclidean norm per sample over all other axes, without overflow or underflow; (B, ...) -> (B,)."""
    scaled, top = _scaled(x)
    return top * scaled.flatten(1).norm(dim=1)


def unit(x: Tensor) -> Tensor:
    """x / ||x|| per sample over all other axes, zero where x is zero; (B, ...) -> (B, ...)."""
    scaled, top = _scaled(x)
    length = scaled.flatten(1).norm(dim=1) + (top == 0)
    return scaled / length.view(-1, *[1] * (x.ndim - 1))


def _scaled(x: Tensor) -> tuple[Tensor, Tensor]:
    """x with its largest entry made 1 in each sample, and that entry's size; squares then neither vanish nor overflow."""
    top = x.flatten(1).abs().amax(1)
    return x / (top + (top == 0)).view(-1, *[1] * (x.ndim - 1)), top


def to_pil(images: Tensor) -> list:
    """(B, 3, H, W) in [0, 1], clamped, to a list of PIL images."""
    from PIL import Image

    pixels = (
        images.detach()
        .float()
        .clamp(0, 1)
        .mul(255)
        .round()
        .byte()
        .permute(0, 2, 3, 1)
        .cpu()
        .numpy()
    )
    return [Image.fromarray(p[..., 0] if p.shape[-1] == 1 else p) for p in pixels]


def pack(value: Any) -> Any:
    """Records, tuples and dicts as plain containers of tensors, which `torch.load(weights_only=True)` accepts."""
    if isinstance(value, Record):
        items = {f.name: pack(getattr(value, f.name)) for f in fields(value) if f.name != "decode"}
        return {"record": type(value).__name__, **items}
    if isinstance(value, dict):
        return {key: pack(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(pack(item) for item in value)
    return value


def unpack(value: Any, device: Any) -> Any:
    """The inverse of `pack`, with all tensors on a device."""
    if isinstance(value, dict):
        items = {key: unpack(item, device) for key, item in value.items() if key != "record"}
        return _RECORDS[value["record"]](**items) if "record" in value else items
    if isinstance(value, (list, tuple)):
        return type(value)(unpack(item, device) for item in value)
    return value.to(device) if hasattr(value, "to") else value


_RECORDS = {cls.__name__: cls for cls in (Conditioning, State, RewardGradient, StepInfo)}
