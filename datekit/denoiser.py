"""The guided model at one paused step: x0bar(xt, c), and the gradient of a reward of it.

The chain rule grad_c h = (d x0bar / d c)^T grad_{x0bar} h is taken from its two ends:
`reward_gradient` decodes and scores x0bar, `_backward` carries the result through the network. So
the two halves can be looked at, and with keep_graph=False they are never in memory together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import torch
from torch import Tensor

from .errors import check_finite, unknown
from .memory import MemorySettings
from .rewards import gradient as first_half
from .tensors import per_sample, power_of_two
from .types import Conditioning, Prediction, RewardGradient, State

WRT = ("sequence", "pooled", "both")
SEEN = ("x0bar", "xt")


class Denoiser:
    """What a method sees of a `State`; nothing here advances it.

    memory: how much of the batch is in memory at once; one_batch: whether both branches of guidance
    run as one batch; extras: tensors (B, ...) by name that the method wants in `StepInfo.extras`;
    branch: "uncond", "cond" or "both" (the unconditional rows first).
    """

    def __init__(self, backbone, solver, guidance_scale: float, state: State, memory=None) -> None:
        self.backbone, self.solver, self.guidance_scale = backbone, solver, guidance_scale
        self.state, self.memory = state, memory or MemorySettings()
        self.one_batch, self.extras = backbone.one_batch, {}
        self._offset = 0  # of the first sample, where this is a part of a batch
        self._running = SimpleNamespace(branch=None, first=0)  # shared with the parts
        self._out_u: Tensor | None = None
        self._predictions: list[tuple[Conditioning, Prediction]] = []
        self._differentiated: list[Conditioning] = []

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return self.solver.num_steps

    @property
    def branch(self) -> str | None:
        """Which rows the network computes now, None while it does not run."""
        return self._running.branch

    @property
    def first(self) -> int:
        """The number of the first sample that the network computes now."""
        return self._running.first

    @property
    def guided(self) -> bool:
        """Whether there is a second branch to guide with."""
        return self.state.uncond is not None and self.guidance_scale != 1

    @property
    def where(self) -> str:
        """The step in words, for the end of an error."""
        return f" at step {self.state.i} (t = {self.state.t:g})"

    def predict(self, cond: Conditioning | None = None, xt: Tensor | None = None) -> Prediction:
        """x0bar and the guided output at (xt, cond), the state's own by default; carries gradient.

        Without gradient the answer is remembered for this step. Once the unconditional output is
        known, another embedding costs its conditional branch only. An embedding at which a gradient
        was taken is predicted again with both branches in one batch, so that a look changes no bit
        of the step.
        """
        cond = self.state.cond if cond is None else cond
        xt = self.state.xt if xt is None else xt
        if xt is not self.state.xt or xt.requires_grad or cond.requires_grad:
            return self._predict(cond, xt)
        for known, prediction in self._predictions:
            if known.same(cond):
                return prediction
        if self._out_u is None or any(known.same(cond) for known in self._differentiated):
            prediction = self._predict(cond, xt)
            self._out_u = prediction.out_u
        else:
            prediction = self._combine(self._out_u, self._network(xt, cond, "cond"), xt)
        self._predictions.append((cond, prediction))
        return prediction

    def value_and_grad(
        self,
        reward: Callable | None,
        cond: Conditioning | None = None,
        *,
        wrt: str = "sequence",
        seen: str = "x0bar",
    ) -> RewardGradient:
        """x0bar at cond, its reward h, and the gradients of h in x0bar and in c; all detached.

        wrt: what is differentiated, "sequence" (B, L, D), "pooled" (B, P) or "both"; seen: what the
        reward judges, "x0bar" or the noisy "xt" that the step leads to. With reward None there is
        x0bar alone. Raises NonFiniteError (step and sample named) for a reward or gradient that is
        not finite, RewardError for a reward of another shape or without gradient.
        """
        cond = self.state.cond if cond is None else cond
        if wrt not in WRT:
            raise unknown("variable", wrt, WRT)
        if seen not in SEEN:
            raise unknown("view of the reward", seen, SEEN)
        if reward is None:
            with torch.no_grad():
                return self.record(cond, self.predict(cond).x0bar)
        self._unconditional()
        self._differentiated.append(cond)
        parts = []
        for rows, part in self.parts():
            parts.append(part._value_and_grad(reward, cond[rows], wrt != "sequence", seen))
        terms = {name: torch.cat([p["terms"][name] for p in parts]) for name in parts[0]["terms"]}
        joined = {name: torch.cat([p[name] for p in parts]) for name in parts[0] if name != "terms"}
        return self.record(cond, joined.pop("x0bar")).replace(terms=terms, **joined)

    def record(self, cond: Conditioning, x0bar: Tensor) -> RewardGradient:
        """x0bar at cond, detached, without a reward."""
        s, c = self.state, cond.sequence.detach()
        decode = self.backbone.decode
        return RewardGradient(s.i, s.t, s.prompts, s.seeds, c, x0bar.detach(), decode=decode)

    def reward_gradient(self, reward: Callable, latents: Tensor) -> tuple[Tensor, Tensor, dict]:
        """The first half: h (B,), its gradient in x0bar (B, C, H, W), and the terms of a sum."""
        s, backbone = self.state, self.backbone
        return first_half.value_and_grad(
            reward, backbone, latents, s.prompts, self.memory, self.where, self._offset
        )

    def reward_of(self, reward: Callable, latents: Tensor, where: str = "") -> Tensor:
        """h of latents (B, C, H, W), without gradient, (B,)."""
        s, where = self.state, where or self.where
        return first_half.value(
            reward, self.backbone, latents, s.prompts, self.memory, where, self._offset
        )

    def vjp(self, cond: Conditioning, grad_x0bar: Tensor, *, pooled: bool = False) -> list[Tensor]:
        """The second half: (d x0bar / d c)^T grad_x0bar through the network, [(B, L, D)].

        Masked positions get zero. pooled: whether the gradient in the pooled vector, (B, P),
        follows.
        """
        x0bar, leaves = self._graph(cond, pooled)
        return self._backward(x0bar, leaves, cond, grad_x0bar)

    def vjp_xt(self, cond: Conditioning, grad_x0bar: Tensor) -> Tensor:
        """(d x0bar / d xt)^T grad_x0bar through both branches, (B, C, H, W): the vjp in xt."""
        power = power_of_two(grad_x0bar)
        with torch.enable_grad(), self.backbone.checkpointing(self.memory.checkpointing):
            leaf = self.state.xt.detach().requires_grad_()
            x0bar = self._predict(cond, leaf).x0bar
            cotangent = torch.ldexp(grad_x0bar, -power).to(x0bar.dtype)
            (grad,) = torch.autograd.grad(x0bar, leaf, cotangent)
        grad = torch.ldexp(grad.to(x0bar.dtype), power)
        check_finite(grad, "grad_xt h is not finite", self.where, self._offset)
        return grad

    def seen_latents(self, x0bar: Tensor, seen: str) -> Tensor:
        """What the reward judges: x0bar, or the xt that DDIM's mean leads to; carries gradient."""
        if seen == "x0bar":
            return x0bar
        i = self.state.i
        alpha, sigma = self.solver.level(i)
        eps = (self.state.xt.to(x0bar) - alpha * x0bar) / sigma
        return self.solver.noised(x0bar, eps, i + 1)

    def at(self, xt: Tensor) -> Denoiser:
        """The same step at another latent, (B, C, H, W)."""
        return self._like(self.state.replace(xt=xt), 0)

    def parts(self) -> Iterator[tuple[slice, Denoiser]]:
        """Rows and a denoiser of them alone, `memory.micro_batch` samples at a time."""
        count = len(self.state)
        size = min(self.memory.micro_batch or count, count)
        for start in range(0, count, size):
            rows = slice(start, min(start + size, count))
            part = self._like(self.state[rows], start)
            part._out_u = None if self._out_u is None else self._out_u[rows]
            yield rows, part

    def _like(self, state: State, start: int) -> Denoiser:
        other = Denoiser(self.backbone, self.solver, self.guidance_scale, state, self.memory)
        other.one_batch, other._running = self.one_batch, self._running
        other._offset = self._offset + start
        return other

    def _value_and_grad(self, reward, cond: Conditioning, pooled: bool, seen: str) -> dict:
        if self.memory.keep_graph:  # the network's graph waits for the reward's gradient
            x0bar, leaves = self._graph(cond, pooled)
        else:
            with torch.no_grad():
                x0bar = self._conditional(cond)
        leaf = x0bar.detach().requires_grad_()
        with torch.enable_grad():
            latents = self.seen_latents(leaf, seen)
        h, grad_x0bar, terms = self.reward_gradient(reward, latents)
        if latents is not leaf:
            (grad_x0bar,) = torch.autograd.grad(latents, leaf, grad_x0bar)
        if self.memory.keep_graph:
            grads = self._backward(x0bar, leaves, cond, grad_x0bar)
        else:
            grads = self.vjp(cond, grad_x0bar, pooled=pooled)
        parts = {"x0bar": x0bar.detach(), "h": h, "grad_x0bar": grad_x0bar, "terms": terms}
        return parts | dict(zip(("grad", "grad_pooled"), grads, strict=False))

    def _graph(self, cond: Conditioning, pooled: bool) -> tuple[Tensor, list[Tensor]]:
        """x0bar with its graph to the embedding, and the leaves to differentiate it in."""
        leaves = {"sequence": cond.sequence.detach().requires_grad_()}
        if pooled:
            leaves["pooled"] = cond.pooled.detach().requires_grad_()
        with torch.enable_grad(), self.backbone.checkpointing(self.memory.checkpointing):
            return self._conditional(cond.replace(**leaves)), list(leaves.values())

    def _backward(self, x0bar, leaves, cond: Conditioning, grad_x0bar: Tensor) -> list[Tensor]:
        power = power_of_two(grad_x0bar)
        cotangent = torch.ldexp(grad_x0bar, -power).to(x0bar.dtype)
        with self.backbone.checkpointing(self.memory.checkpointing):
            scaled = torch.autograd.grad(x0bar, leaves, cotangent)
        grads = [torch.ldexp(grad, per_sample(power.flatten(), grad)) for grad in scaled]
        if cond.mask is not None:
            grads[0] = torch.where(cond.mask[..., None], grads[0], 0)
        for grad in grads:
            check_finite(grad, "grad_c h is not finite", self.where, self._offset)
        return grads

    def _unconditional(self) -> None:
        """Compute the unconditional output, unless this step has it: no c is in it."""
        if self.guided and self._out_u is None:
            with torch.no_grad():
                self._out_u = self._network(self.state.xt, self.state.uncond, "uncond")

    def _conditional(self, cond: Conditioning) -> Tensor:
        """The guided x0bar, from the conditional branch at cond and this step's other output."""
        self._unconditional()
        xt = self.state.xt.detach()
        return self._combine(self._out_u, self._network(xt, cond, "cond"), xt).x0bar

    def _predict(self, cond: Conditioning, xt: Tensor) -> Prediction:
        """Both branches as one batch or one after the other, as the family's pipeline does it."""
        if not self.guided:
            return self._combine(None, self._network(xt, cond, "cond"), xt)
        uncond = self.state.uncond
        if self.one_batch:
            both = Conditioning.cat([uncond, cond])
            out_u, out_c = self._network(torch.cat([xt, xt]), both, "both").chunk(2)
        else:
            out_u = self._network(xt, uncond, "uncond")
            out_c = self._network(xt, cond, "cond")
        return self._combine(out_u, out_c, xt)

    def _network(self, xt: Tensor, cond: Conditioning, branch: str) -> Tensor:
        self._running.branch, self._running.first = branch, self._offset
        if self.state.uncond is None:
            cond = self.backbone.with_guidance(cond, self.guidance_scale)
        try:
            scaled = self.solver.scale_input(xt, self.state.i)
            return self.backbone.predict(scaled, self.state.t, cond)
        finally:
            self._running.branch, self._running.first = None, 0

    def _combine(self, out_u: Tensor | None, out_c: Tensor, xt: Tensor) -> Prediction:
        i, solver = self.state.i, self.solver
        exact = torch.promote_types(xt.dtype, torch.float32)
        xt, out, eps_u = xt.to(exact), out_c, None
        if out_u is not None:
            out = self.backbone.guide(out_u, out_c, self.guidance_scale)
            eps_u = solver.eps(out_u.to(exact), xt, i)
        x0bar, eps = solver.x0bar(out.to(exact), xt, i), solver.eps(out.to(exact), xt, i)
        return Prediction(x0bar, out, eps, solver.eps(out_c.to(exact), xt, i), eps_u, out_u)
