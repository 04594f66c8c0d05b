"""Learn soft tokens by contrast: only they receive gradient; the model stays as it is."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..backbones import Backbone, wrap
from ..errors import NonFiniteError
from ..files import load_tensors, save_tensors
from ..methods.soft_tokens import BINS, SoftTokens
from ..methods.softrepa import check_fit, placed, takes
from .data import Pairs, read_pairs
from .encoded import Encoded, bar, encode
from .loss import denoising_errors
from .plan import Batch, Plan
from .processes import Processes

SAVE_SECONDS = 30.0
POINTS = 40  # of the curve
FORMAT = 2  # of checkpoints


def train(
    backbone,
    pairs,
    *,
    chunk: int | None = None,
    checkpointing: bool = False,
    checkpoint: str | Path | None = None,
    cache: str | Path | None = None,
    progress: bool = True,
    **plan,
) -> SoftTokens:
    """Soft tokens of a model, learnt from image-caption pairs by the loss of `Contrast`.

    backbone: from `dk.load` or `dk.wrap`, or a pipeline; pairs: `Pairs`, what `read_pairs` takes,
    (images, captions), or `Encoded`; plan: the settings of `Plan` (num_tokens, layers, steps, lr,
    ...). chunk: how many pairs are computed at a time, all by default; checkpointing: recompute
    activations, for less memory; checkpoint: a file to resume from, written every 30 s; cache: a
    file of latents and embeddings. Stopped and resumed training is the training that was never
    stopped. Under `accelerate launch` each process takes batches of its own, and n processes do
    what accumulate = n does. Raises NonFiniteError, which names the step, where the loss diverges;
    ValueError for settings, pairs or a checkpoint that do not fit.
    """
    backbone = backbone if isinstance(backbone, Backbone) else wrap(backbone)
    settings, processes = Plan(**plan).for_model(backbone), Processes(backbone.device)
    with processes.main_first():
        encoded = _encoded(backbone, pairs, cache)
    wrong = encoded.pairs.negatives
    if settings.hard and min(map(len, wrong), default=0) < settings.negatives:
        raise ValueError(
            f"{encoded.pairs.name}: hard negatives need {settings.negatives} false captions for "
            "each caption (a column `negative`)"
        )
    trainer = TokenTrainer(encoded, settings, processes, chunk=chunk, checkpointing=checkpointing)
    if checkpoint is not None and Path(checkpoint).is_file():
        trainer.resume(checkpoint)
    saved, shown = time.monotonic(), progress and not processes.rank
    with bar(total=settings.steps, initial=trainer.step, desc="SoftREPA", shown=shown) as line:
        while trainer.step < settings.steps:
            measured = trainer.advance()
            line.set_postfix({name: f"{measured[name]:.4g}" for name in ("loss", "accuracy")})
            line.update()
            due = time.monotonic() - saved > SAVE_SECONDS or trainer.step == settings.steps
            if checkpoint is not None and due:
                trainer.save(checkpoint)
                saved = time.monotonic()
    return trainer.result()


class TokenTrainer:
    """Training in progress: the tokens as parameters, their optimiser, and the next step."""

    def __init__(
        self,
        encoded: Encoded,
        plan: Plan,
        processes: Processes | None = None,
        *,
        chunk: int | None = None,
        checkpointing: bool = False,
    ) -> None:
        self.encoded, self.backbone, device = encoded, encoded.backbone, encoded.backbone.device
        self.plan, self.processes = plan.for_model(self.backbone), processes or Processes(device)
        self.chunk, self.checkpointing = chunk, checkpointing
        first = initial(self.backbone, self.plan)
        check_fit(self.backbone, first)
        tokens = torch.nn.Parameter(first.tokens.to(device))
        vectors = None if first.time is None else torch.nn.Parameter(first.time.to(device))
        self.soft = first.replace(tokens=tokens, time=vectors)
        self.parameters = [tokens] if vectors is None else [tokens, vectors]
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=plan.lr, weight_decay=plan.weight_decay
        )
        scaled = plan.precision == "float16" and device.type == "cuda"
        self.scaler = torch.amp.GradScaler(device.type, enabled=scaled)
        self.step, self.seconds, self.curve, self._window = 0, 0.0, [], []

    def loss(self, draw: Batch) -> tuple[Tensor, dict[str, float]]:
        """The loss of one batch, and what it measured besides.

        The tokens must be `placed` at the batch's timestep.
        """
        device, plan = self.backbone.device, self.plan
        x0 = self.encoded.latents[draw.images].to(device, self.backbone.dtype)
        generator = torch.Generator().manual_seed(draw.noise)
        eps = torch.randn(1, *x0.shape[1:], generator=generator).to(x0)
        texts, columns = self.encoded.texts(draw.texts), draw.columns.to(device)
        precision = getattr(torch, plan.precision) if plan.precision else None
        with torch.autocast(device.type, precision, enabled=precision is not None):
            errors = denoising_errors(
                self.backbone, x0, texts, columns, eps, draw.t, chunk=self.chunk
            )
        positive = draw.positive.to(device)
        value = plan.contrast.loss(errors, positive)
        with torch.no_grad():
            measured = {
                "loss": value,
                "entropy": plan.contrast.entropy(errors, positive),
                "error": errors.gather(1, positive[:, None]).mean(),
                "accuracy": (errors.argmin(1) == positive).float().mean(),
            }
        return value, {name: number.item() for name, number in measured.items()}

    def advance(self) -> dict[str, float]:
        """Take one step of the optimiser and return what it measured.

        Raises NonFiniteError before anything that is not finite reaches the tokens.
        """
        began, plan, measured = time.monotonic(), self.plan, []
        self.optimiser.zero_grad(set_to_none=True)
        for part in range(plan.accumulate):
            of_all = (self.step * plan.accumulate + part) * self.processes.world
            draw = Batch.draw(self.encoded.pairs, plan, of_all + self.processes.rank)
            measured.append(self._backward(draw))
        for parameter in self.parameters:
            parameter.grad = self.processes.mean(parameter.grad)
            if not self.scaler.is_enabled() and not parameter.grad.isfinite().all():
                raise NonFiniteError(
                    f"the gradient of the soft tokens is not finite at step {self.step}; take a "
                    "smaller lr or float32"
                )
        for group in self.optimiser.param_groups:
            group["lr"] = plan.learning_rate(self.step)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.step += 1
        self.seconds += time.monotonic() - began
        means = _means(measured)
        self._window.append(means)
        if self.step % max(1, plan.steps // POINTS) == 0 or self.step == plan.steps:
            rounded = {name: round(value, 5) for name, value in _means(self._window).items()}
            self.curve.append({"step": self.step} | rounded)
            self._window.clear()
        return means

    def _backward(self, draw: Batch) -> dict[str, float]:
        # around backward too: with checkpointing the network runs again in there
        with (
            torch.enable_grad(),
            self.backbone.lock,
            self.backbone.checkpointing(self.checkpointing),
            placed(self.backbone, self.soft, draw.t),
        ):
            value, measured = self.loss(draw)
            if not math.isfinite(measured["loss"]):
                raise NonFiniteError(
                    f"the loss is {measured['loss']} at step {self.step} (t = {draw.t}); take a "
                    "smaller lr, the exponential logits, or float32"
                )
            self.scaler.scale(value / self.plan.accumulate).backward()
        return measured

    def result(self) -> SoftTokens:
        """The tokens as they are now, on the CPU, with what made them."""
        done = {"steps done": self.step, "seconds": round(self.seconds, 1)}
        config = self._settings() | done | {"curve": list(self.curve)}
        values = [parameter.detach().cpu().clone() for parameter in self.parameters]
        return SoftTokens(*values, layers=self.soft.layers, config=config)

    def save(self, path: str | Path) -> None:
        """Write a checkpoint, whole or not at all; of several processes only the first does."""
        if self.processes.rank:
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        content = {
            "settings": self._settings(),
            "digest": self.encoded.pairs.digest,
            "parameters": [parameter.detach().cpu() for parameter in self.parameters],
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "progress": [self.step, self.seconds, self.curve, self._window],
        }
        save_tensors(path, "SoftREPA training", FORMAT, content)

    def resume(self, path: str | Path) -> None:
        """Go on from a checkpoint. Raises ValueError, which names what differs, for another's."""
        kept = load_tensors(path, "SoftREPA training", FORMAT)
        mine, theirs = self._settings(), kept["settings"]
        other = []
        for name in mine:
            if mine[name] != theirs.get(name):
                other.append(f"{name} was {theirs.get(name)!r}, now {mine[name]!r}")
        if kept["digest"] != self.encoded.pairs.digest:
            other.append("the images or captions were others")
        if other:
            raise ValueError(
                f"{path} is the checkpoint of another training: {'; '.join(other)}. Take another "
                "file, or remove it"
            )
        with torch.no_grad():
            for parameter, value in zip(self.parameters, kept["parameters"], strict=True):
                parameter.copy_(value)
        self.optimiser.load_state_dict(kept["optimiser"])
        self.scaler.load_state_dict(kept["scaler"])
        self.step, self.seconds, self.curve, self._window = kept["progress"]

    def _settings(self) -> dict:
        plan = asdict(self.plan)
        plan |= {"layers": list(self.plan.layers), "t_range": list(self.plan.t_range)}
        own = {"model": self.backbone.name, "pairs": self.encoded.pairs.name}
        return own | {"world": self.processes.world} | plan


def initial(backbone, plan: Plan) -> SoftTokens:
    """Where training starts: N(0, 0.02).

    For a U-Net without a pooled vector (SD 1.x, 2.x) it is the start token's embedding of "".
    """
    joint, widths, _ = takes(backbone)
    places = len(plan.layers) if joint else 1
    generator = torch.Generator().manual_seed(plan.seed)
    tokens = 0.02 * torch.randn(places, plan.num_tokens, widths[0], generator=generator)
    if not joint and not backbone.pooled:
        with torch.no_grad():
            start = backbone.encode([""]).sequence[:1, :1]
        tokens = start.cpu().to(tokens).repeat(1, plan.num_tokens, 1)
    vectors = None
    if plan.time:
        vectors = 0.02 * torch.randn(BINS, places, widths[0], generator=generator)
    return SoftTokens(tokens, vectors, plan.layers)


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
            "pairs are softrepa.Pairs, a folder or file of them, or (images, captions), got "
            f"{type(pairs).__name__}"
        )
    return encode(backbone, pairs, cache=cache)


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
