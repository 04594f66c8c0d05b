"""Learn soft tokens by contrast: only they receive gradient; the model stays as it is."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import trange

from ..backbones import Backbone, wrap
from ..backbones.identity import fingerprint
from ..errors import NonFiniteError
from ..files import load_tensors, save_tensors
from ..methods.soft_tokens import BINS, SoftTokens
from ..methods.softrepa import place, takes
from ..serialize import describe, differences
from .data import Pairs
from .loss import denoising_errors
from .plan import Batch, Plan

SAVE_SECONDS = 30.0
POINTS = 40  # of the curve
FORMAT = 4  # of checkpoints


def train(
    backbone: Any,
    pairs: Pairs,
    *,
    checkpointing: bool = False,
    checkpoint: str | Path | None = None,
    **plan: Any,
) -> SoftTokens:
    """Soft tokens of a model, learnt from image-caption pairs by the loss of `Contrast`.

    backbone: from `dk.load` or `dk.wrap`, or a pipeline; plan: the settings of `Plan` (num_tokens,
    layers, steps, lr, ...); checkpointing: recompute activations, for less memory; checkpoint: a
    file to resume from, written every 30 s. Stopped and resumed training is the training that was
    never stopped. Raises NonFiniteError, which names the step, where the loss diverges; ValueError
    for settings, pairs or a checkpoint that do not fit.
    """
    backbone = backbone if isinstance(backbone, Backbone) else wrap(backbone)
    trainer = TokenTrainer(backbone, pairs, Plan(**plan), checkpointing=checkpointing)
    if checkpoint is not None and Path(checkpoint).is_file():
        trainer.resume(checkpoint)
    steps, saved = trainer.plan.steps, time.monotonic()
    # tqdm itself does not read the variable in a notebook; disable=False would override it
    hidden = "TQDM_DISABLE" in os.environ or None
    for _ in trange(trainer.step, steps, desc="SoftREPA", delay=2, leave=False, disable=hidden):
        trainer.advance()
        due = time.monotonic() - saved > SAVE_SECONDS or trainer.step == steps
        if checkpoint is not None and due:
            trainer.save(checkpoint)
            saved = time.monotonic()
    return trainer.result()


class TokenTrainer:
    """Training in progress: the tokens as parameters, their optimiser, and the next step."""

    def __init__(
        self, backbone: Any, pairs: Pairs, plan: Plan, *, checkpointing: bool = False
    ) -> None:
        self.backbone, self.pairs, self.plan = backbone, pairs, plan.for_model(backbone)
        if min(map(len, pairs.negatives), default=0) < (plan.negatives or 0):
            raise ValueError(f"{pairs.name} has not {plan.negatives} false captions of each image")
        self.checkpointing = checkpointing
        self.soft = initial(backbone, self.plan)
        self.parameters = list(self.soft.numbers.values())
        self.optimiser = torch.optim.AdamW(self.parameters, plan.lr, weight_decay=plan.weight_decay)
        self.step, self.seconds, self.curve, self._window = 0, 0.0, [], []

    def loss(self, draw: Batch) -> tuple[Tensor, dict[str, float]]:
        """The loss of one batch with the tokens `placed` at its timestep, and its measures."""
        contrast, x0 = self.plan.contrast, self.pairs.latents(self.backbone, draw.images)
        generator = torch.Generator().manual_seed(draw.noise)
        eps = torch.randn(1, *x0.shape[1:], generator=generator).to(x0)
        texts, columns = self.backbone.encode(draw.texts), draw.columns.to(x0.device)
        errors = denoising_errors(self.backbone, x0, texts, columns, eps, draw.t)
        positive, seen = draw.positive.to(x0.device), errors.detach()
        value = contrast.loss(errors, positive)
        measured = {
            "loss": value,
            "entropy": contrast.entropy(seen, positive),
            "error": seen.gather(1, positive[:, None]).mean(),
            "accuracy": (seen.argmin(1) == positive).float().mean(),
        }
        return value, {name: number.item() for name, number in measured.items()}

    def advance(self) -> None:
        """Take one step of the optimiser.

        Raises NonFiniteError before anything that is not finite reaches the tokens.
        """
        began, plan = time.monotonic(), self.plan
        draw = Batch.draw(self.pairs, plan, self.step)
        self.optimiser.zero_grad(set_to_none=True)
        # around backward too: with checkpointing the network runs again in there
        with (
            torch.enable_grad(),
            self.backbone.patching(),
            self.backbone.checkpointing(self.checkpointing),
            place(self.backbone, self.soft, draw.t),
        ):
            value, measured = self.loss(draw)
            value.backward()
        gradients = [parameter.grad for parameter in self.parameters]
        if not all(each.isfinite().all() for each in (value, *gradients)):
            raise NonFiniteError(
                f"the loss is {measured['loss']}, or its gradient is not finite, at step "
                f"{self.step} (t = {draw.t}); take a smaller lr, the exponential logits, or float32"
            )
        for group in self.optimiser.param_groups:
            group["lr"] = plan.learning_rate(self.step)
        self.optimiser.step()
        self.step += 1
        self.seconds += time.monotonic() - began
        self._window.append(measured)
        if self.step % max(1, plan.steps // POINTS) == 0 or self.step == plan.steps:
            means = {}
            for name in measured:
                means[name] = round(float(np.mean([row[name] for row in self._window])), 5)
            self.curve.append({"step": self.step} | means)
            self._window.clear()

    def result(self) -> SoftTokens:
        """The tokens as they are now, on the CPU, with what made them."""
        done = {"steps done": self.step, "seconds": round(self.seconds, 1)}
        config = self._settings() | done | {"curve": list(self.curve)}
        values = [parameter.detach().cpu().clone() for parameter in self.parameters]
        return SoftTokens(*values, layers=self.soft.layers, config=config)

    def save(self, path: str | Path) -> None:
        """Write a checkpoint, whole or not at all."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        content = {
            "settings": self._settings(),
            "parameters": [parameter.detach().cpu() for parameter in self.parameters],
            "optimiser": self.optimiser.state_dict(),
            "progress": [self.step, self.seconds, self.curve, self._window],
        }
        save_tensors(path, "SoftREPA training", FORMAT, content)

    def resume(self, path: str | Path) -> None:
        """Go on from a checkpoint. Raises ValueError, which names what differs, for another's."""
        kept = load_tensors(path, "SoftREPA training", FORMAT)
        if other := differences(kept["settings"], self._settings()):
            raise ValueError(
                f"{path} is the checkpoint of another training: {'; '.join(other)}. Take another "
                "file, or remove it"
            )
        with torch.no_grad():
            for parameter, value in zip(self.parameters, kept["parameters"], strict=True):
                parameter.copy_(value)
        self.optimiser.load_state_dict(kept["optimiser"])
        self.step, self.seconds, self.curve, self._window = kept["progress"]

    def _settings(self) -> dict:
        """All that the result depends on; model and data by name and by digest."""
        data = {
            "model": self.backbone.name,
            "weights": fingerprint(self.backbone),
            "pairs": self.pairs.name,
            "data": self.pairs.digest,
        }
        return data | describe(asdict(self.plan))


def initial(backbone, plan: Plan) -> SoftTokens:
    """Where training starts, as leaves that take gradient: N(0, 0.02).

    For a U-Net without a pooled vector (SD 1.x, 2.x) it is the start token's embedding of "".
    """
    joint, width, _ = takes(backbone)
    places = len(plan.layers) if joint else 1
    generator = torch.Generator().manual_seed(plan.seed)
    tokens, vectors = 0.02 * torch.randn(places, plan.num_tokens, width, generator=generator), None
    if not joint and not backbone.pooled:
        start = backbone.encode([""]).sequence[:1, :1]
        tokens = start.cpu().to(tokens).repeat(1, plan.num_tokens, 1)
    if plan.time:
        vectors = 0.02 * torch.randn(BINS, places, width, generator=generator)
    soft = SoftTokens(tokens, vectors, plan.layers)
    leaves = {name: x.to(backbone.device).requires_grad_() for name, x in soft.numbers.items()}
    return soft.replace(**leaves)
