"""Learn soft tokens by contrast: only they receive gradient; stopped and resumed training is the training that was never stopped."""

from __future__ import annotations

import math
import os
import time as clock
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..backbones import Backbone, wrap
from ..errors import NonFiniteError
from ..files import load_tensors, save_tensors
from ..methods.softrepa import check_fit, placed, takes
from ..methods.soft_tokens import BINS, SoftTokens
from .data import Pairs, read_pairs
from .encoded import Encoded, bar, encode
from .loss import Contrast, denoising_errors
from .plan import Batch, Plan

SAVE_SECONDS = 30.0
_FORMAT = 1


def train(
    backbone,
    pairs,
    *,
    num_tokens: int = 4,
    layers=None,
    time: bool | None = None,
    steps: int = 2000,
    batch: int = 4,
    negatives: int | None = None,
    hard: bool = False,
    contrast: Contrast | None = None,
    lr: float = 1e-3,
    weight_decay: float = 1e-4,
    restart: int | None = None,
    accumulate: int = 1,
    precision: str | None = None,
    t_range: tuple[int, int] = (0, 1000),
    seed: int = 0,
    chunk: int | None = None,
    checkpointing: bool = False,
    checkpoint: str | Path | None = None,
    cache: str | Path | None = None,
    progress: bool = True,
) -> SoftTokens:
    """Soft tokens of a model, learnt from image-caption pairs by the loss of `Contrast`; the model stays as it is.

    backbone: from `dk.load` or `dk.wrap`, or a pipeline; pairs: `Pairs`, what `read_pairs` takes, or (images, captions), or `Encoded`.
    num_tokens: m; layers: of a U-Net some of "down", "mid", "up", of a joint transformer the number of first blocks, or which; "all";
    time: a vector for each of 100 time bins besides; these and the weight on the denoising term are by default what the authors take:
    down (and mid with a pooled vector, SDXL), without time, dweight 10, or the first 5 blocks, with time, dweight 0. batch: B images;
    negatives: None for the captions of the other B - 1, or how many for each image alone, random or, hard=True, its own false ones.
    AdamW with lr, a cosine to 1e-5 that restarts every `restart` steps (never, by default). accumulate: batches a step; precision:
    "bfloat16" or "float16", mixed; t_range: of the timestep, the same for all pairs of a batch, as is the noise. chunk: pairs
    computed at a time; checkpointing: recompute activations; checkpoint: a file to resume from, written every 30 s; cache: a file of
    latents and embeddings. Under `accelerate launch` each process takes its own batches, and n processes are accumulate = n.
    Raises NonFiniteError, naming the step, where the loss diverges; ValueError for settings, pairs or a checkpoint that do not fit.
    """
    backbone = backbone if isinstance(backbone, Backbone) else wrap(backbone)
    joint = takes(backbone)[0]
    plan = Plan(
        num_tokens,
        layers_of(backbone, layers),
        joint if time is None else time,
        steps,
        batch,
        negatives,
        hard,
        Contrast(dweight=0.0 if joint else 10.0) if contrast is None else contrast,
        lr,
        weight_decay,
        restart or steps,
        accumulate,
        precision,
        tuple(t_range),
        seed,
    )
    group = _Group(backbone.device)
    encoded = group.first(lambda: _encoded(backbone, pairs, cache))
    if plan.hard and min(map(len, encoded.pairs.negatives), default=0) < plan.negatives:
        raise ValueError(
            f"{encoded.pairs.name}: hard negatives need {plan.negatives} false captions for each caption (a column `negative`)"
        )
    learner = Learner(encoded, plan, group, chunk=chunk, checkpointing=checkpointing)
    learner.resume(checkpoint)
    saved = clock.monotonic()
    with bar(
        total=steps,
        initial=learner.step,
        desc="SoftREPA",
        unit="step",
        shown=progress and not group.rank,
    ) as shown:
        while learner.step < steps:
            shown.set_postfix(learner.advance())
            shown.update()
            if checkpoint is not None and (
                clock.monotonic() - saved > SAVE_SECONDS or learner.step == steps
            ):
                learner.save(checkpoint)
                saved = clock.monotonic()
    return learner.result()


def layers_of(backbone, layers) -> tuple:
    """The places that `layers` means for a model: None (the authors' choice), "all", a number of first blocks, or names; or ValueError."""
    joint, _, known = takes(backbone)
    if layers is None:
        wanted = (
            tuple(range(min(5, len(known))))
            if joint
            else ("down", "mid")
            if backbone.pooled
            else ("down",)
        )
    elif isinstance(layers, str) and layers == "all":
        wanted = known
    elif isinstance(layers, int) and not isinstance(layers, bool):
        wanted = tuple(range(layers))
    else:
        wanted = (layers,) if isinstance(layers, str) else tuple(layers)
    if not wanted or any(layer not in known for layer in wanted):
        more = ", or how many from the first" if joint else ""
        raise ValueError(
            f"layers of {backbone.name} are some of {known}, 'all'{more}; got {layers!r}"
        )
    return SoftTokens(torch.zeros(len(wanted) if joint else 1, 0, 1), layers=wanted).layers


class Learner:
    """Training in progress: the tokens as parameters, their optimiser, and the step that comes next."""

    def __init__(
        self,
        encoded: Encoded,
        plan: Plan,
        group: _Group | None = None,
        *,
        chunk: int | None = None,
        checkpointing: bool = False,
    ) -> None:
        self.encoded, self.plan, self.chunk, self.checkpointing = (
            encoded,
            plan,
            chunk,
            checkpointing,
        )
        self.backbone, self.group = encoded.backbone, group or _Group(encoded.backbone.device)
        start = initial(self.backbone, plan)
        move = lambda x: None if x is None else torch.nn.Parameter(x.to(self.backbone.device))
        self.soft = start.replace(tokens=move(start.tokens), time=move(start.time))
        check_fit(self.backbone, self.soft)
        self.parameters = [x for x in (self.soft.tokens, self.soft.time) if x is not None]
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=plan.lr, weight_decay=plan.weight_decay
        )
        device = self.backbone.device.type
        self.scaler = torch.amp.GradScaler(
            device, enabled=plan.precision == "float16" and device == "cuda"
        )
        self.step, self.seconds, self.curve, self._window = 0, 0.0, [], []

    def loss(self, draw: Batch) -> tuple[Tensor, dict[str, float]]:
        """The loss of one batch, and what it measured besides. The tokens must be `placed` at the batch's timestep."""
        device, plan = self.backbone.device, self.plan
        x0 = self.encoded.latents[draw.images].to(device, self.backbone.dtype)
        eps = torch.randn(1, *x0.shape[1:], generator=torch.Generator().manual_seed(draw.noise)).to(
            x0
        )
        precision = getattr(torch, plan.precision) if plan.precision else None
        with torch.autocast(device.type, precision, enabled=precision is not None):
            errors = denoising_errors(
                self.backbone,
                x0,
                self.encoded.texts(draw.texts),
                draw.columns.to(device),
                eps,
                draw.t,
                chunk=self.chunk,
            )
        positive = draw.positive.to(device)
        value = plan.contrast.loss(errors, positive)
        with torch.no_grad():
            seen = {
                "loss": value,
                "entropy": plan.contrast.entropy(errors, positive),
                "error": errors.gather(1, positive[:, None]).mean(),
                "accuracy": (errors.argmin(1) == positive).float().mean(),
            }
        return value, {name: number.item() for name, number in seen.items()}

    def advance(self) -> dict[str, float]:
        """One step of the optimiser; what it measured. Raises NonFiniteError before anything non-finite reaches the tokens."""
        began, plan, seen = clock.monotonic(), self.plan, []
        self.optimiser.zero_grad(set_to_none=True)
        for part in range(plan.accumulate):
            draw = Batch.draw(
                self.encoded.pairs,
                plan,
                (self.step * plan.accumulate + part) * self.group.world + self.group.rank,
            )
            # around backward too: with checkpointing the network runs again in there
            with (
                torch.enable_grad(),
                self.backbone.checkpointing(self.checkpointing),
                placed(self.backbone, self.soft, draw.t),
            ):
                value, measured = self.loss(draw)
                if not math.isfinite(measured["loss"]):
                    raise NonFiniteError(
                        f"the loss is {measured['loss']} at step {self.step} (t = {draw.t}); take a smaller lr, "
                        "the exponential logits, or float32"
                    )
                self.scaler.scale(value / plan.accumulate).backward()
            seen.append(measured)
        for parameter in self.parameters:
            parameter.grad = self.group.mean(parameter.grad)
            if not self.scaler.is_enabled() and not parameter.grad.isfinite().all():
                raise NonFiniteError(
                    f"the gradient of the soft tokens is not finite at step {self.step}; take a smaller lr or float32"
                )
        for entry in self.optimiser.param_groups:
            entry["lr"] = plan.learning_rate(self.step)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.step += 1
        self.seconds += clock.monotonic() - began
        return self._noted(
            {name: float(np.mean([entry[name] for entry in seen])) for name in seen[0]}
        )

    def _noted(self, seen: dict[str, float]) -> dict[str, float]:
        self._window.append(seen)
        if self.step % max(1, self.plan.steps // 40) == 0 or self.step == self.plan.steps:
            means = {
                name: round(float(np.mean([entry[name] for entry in self._window])), 5)
                for name in seen
            }
            self.curve.append({"step": self.step} | means)
            self._window.clear()
        return {name: round(seen[name], 4) for name in ("loss", "accuracy")}

    def result(self) -> SoftTokens:
        """The tokens as they are now, on the CPU, with what made them."""
        config = self._settings() | {
            "steps done": self.step,
            "seconds": round(self.seconds, 1),
            "curve": list(self.curve),
        }
        copy = lambda x: None if x is None else x.detach().cpu().clone()
        return SoftTokens(copy(self.soft.tokens), copy(self.soft.time), self.soft.layers, config)

    def _settings(self) -> dict:
        plan = asdict(self.plan)
        plan |= {"layers": list(self.plan.layers), "t_range": list(self.plan.t_range)}
        return {
            "model": self.backbone.name,
            "pairs": self.encoded.pairs.name,
            "world": self.group.world,
            **plan,
        }

    def save(self, path: str | Path) -> None:
        """Write a checkpoint, whole or not at all; of several processes only the first does."""
        if self.group.rank:
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        save_tensors(
            path,
            "SoftREPA training",
            _FORMAT,
            {
                "settings": self._settings(),
                "digest": self.encoded.pairs.digest,
                "parameters": [x.detach().cpu() for x in self.parameters],
                "optimiser": self.optimiser.state_dict(),
                "scaler": self.scaler.state_dict(),
                "step": self.step,
                "seconds": self.seconds,
                "curve": self.curve,
                "window": self._window,
            },
        )

    def resume(self, path: str | Path | None) -> None:
        """Go on from a checkpoint, if it exists. Raises ValueError, naming what differs, for one of another training."""
        if path is None or not Path(path).is_file():
            return
        kept = load_tensors(path, "SoftREPA training", _FORMAT)
        mine, theirs = self._settings(), kept["settings"]
        other = [
            f"{name} was {theirs.get(name)!r}, now {mine.get(name)!r}"
            for name in mine | theirs
            if mine.get(name) != theirs.get(name)
        ]
        if not other and kept["digest"] != self.encoded.pairs.digest:
            other = ["the images or captions were others"]
        if other:
            raise ValueError(
                f"{path} is the checkpoint of another training: {'; '.join(other)}. Take another file, or remove it"
            )
        with torch.no_grad():
            for parameter, value in zip(self.parameters, kept["parameters"], strict=True):
                parameter.copy_(value)
        self.optimiser.load_state_dict(kept["optimiser"])
        self.scaler.load_state_dict(kept["scaler"])
        self.step, self.seconds, self.curve, self._window = (
            kept["step"],
            kept["seconds"],
            kept["curve"],
            kept["window"],
        )


def initial(backbone, plan: Plan) -> SoftTokens:
    """Where training starts: N(0, 0.02), and for a U-Net without pooled vector (SD 1.x, 2.x) the start token's embedding of ""."""
    joint, widths, _ = takes(backbone)
    places, generator = len(plan.layers) if joint else 1, torch.Generator().manual_seed(plan.seed)
    tokens = 0.02 * torch.randn(places, plan.num_tokens, widths[0], generator=generator)
    if not joint and not backbone.pooled:
        with torch.no_grad():
            tokens = (
                backbone.encode([""])
                .sequence[:1, :1]
                .cpu()
                .to(tokens)
                .repeat(1, plan.num_tokens, 1)
            )
    time = 0.02 * torch.randn(BINS, places, widths[0], generator=generator) if plan.time else None
    return SoftTokens(tokens, time, plan.layers)


def _encoded(backbone, pairs, cache) -> Encoded:
    if isinstance(pairs, Encoded):
        if pairs.backbone is not backbone:
            raise ValueError(f"these pairs were encoded by {pairs.backbone!r}, not by {backbone!r}")
        return pairs
    if isinstance(pairs, (str, Path)):
        pairs = read_pairs(pairs)
    elif isinstance(pairs, tuple) and len(pairs) == 2:
        pairs = Pairs.of(*pairs)
    if not isinstance(pairs, Pairs):
        raise TypeError(
            f"pairs are softrepa.Pairs, a folder or file of them, or (images, captions), got {type(pairs).__name__}"
        )
    return encode(backbone, pairs, cache=cache)


class _Group:
    """This process among those that `accelerate launch` started; alone without it."""

    def __init__(self, device: torch.device) -> None:
        self.rank, self.world, self._state = 0, 1, None
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from accelerate import PartialState

            self._state = PartialState(cpu=device.type == "cpu")
            self.rank, self.world = self._state.process_index, self._state.num_processes

    def first(self, work):
        """The result of some work that the first process does before the others, who find its files."""
        if self._state is None:
            return work()
        with self._state.main_process_first():
            return work()

    def mean(self, value: Tensor) -> Tensor:
        """A tensor averaged over the processes."""
        if self._state is None:
            return value
        from accelerate.utils import reduce

        return reduce(value, "mean")


def part() -> None:
    """Ends the work of several processes together, to be called last by each: one that left early would abort those still connected to it."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        from accelerate import PartialState

        PartialState().wait_for_everyone()
        PartialState().destroy_process_group()
