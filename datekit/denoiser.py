"""The guided model at one paused step: x0bar(xt, c), and the gradient of a reward of it.

The chain rule grad_c h = (d x0bar / d c)^T grad_{x0bar} h is taken from its two ends.
`reward_gradient` decodes and scores x0bar; `vjp` carries the result through the network. So the two
halves can be looked at, and need not be in memory together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import torch
from torch import Tensor

from .errors import RewardError, check_finite, unknown
from .memory import MemorySettings
from .rewards.base import decoder_of, score
from .types import Conditioning, Prediction, RewardGradient, State, norm, per_sample

WRT = ("sequence", "pooled", "both")
SEEN = ("x0bar", "xt")


class Denoiser:
    """What a method sees of a `State`; nothing here advances it.

    memory: how much of the batch is in memory at once; one_batch: whether both branches of guidance
    run as one batch; extras: tensors (B, ...) by name that the method wants recorded in
    `StepInfo.extras`.
    """

    def __init__(
        self,
        backbone,
        solver,
        guidance_scale: float,
        state: State,
        memory: MemorySettings | None = None,
    ) -> None:
        self.backbone, self.solver, self.guidance_scale = backbone, solver, guidance_scale
        self.state, self.memory = state, memory or MemorySettings()
        self.one_batch = backbone.one_batch
        self.extras: dict[str, Tensor] = {}
        self._offset = 0  # of the first sample, where this is a part of a batch
        self._pass = SimpleNamespace(branch=None, first=0)  # shared with the parts
        self._out_u: Tensor | None = None
        self._predictions: list[tuple[Conditioning, Prediction]] = []
        self._differentiated: list[Conditioning] = []

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return self.solver.num_steps

    @property
    def guided(self) -> bool:
        """Whether there is a second branch to guide with."""
        return self.state.uncond is not None and self.guidance_scale != 1

    @property
    def branch(self) -> str | None:
        """Which rows the network computes now: "uncond", "cond", "both" (uncond first), or None."""
        return self._pass.branch

    @property
    def first(self) -> int:
        """The number of the first sample that the network computes now."""
        return self._pass.first

    @property
    def where(self) -> str:
        """The step in words, for the end of an error."""
        return f" at step {self.state.i} (t = {self.state.t:g})"

    def predict(self, cond: Conditioning | None = None, xt: Tensor | None = None) -> Prediction:
        """x0bar and the guided output at (xt, cond), the state's own by default; carries gradient.

        Without gradient the answer is remembered for this step. Once the unconditional output is
        known, another embedding costs its conditional branch only. An embedding at which a gradient
        was taken is predicted as the pipeline does it, so that looking does not change what a step
        gives.
        """
        cond = self.state.cond if cond is None else cond
        xt = self.state.xt if xt is None else xt
        if xt is not self.state.xt or xt.requires_grad or cond.sequence.requires_grad:
            return self._predict(cond, xt)
        for known, prediction in self._predictions:
            if known.same(cond):
                return prediction
        seen = any(known.same(cond) for known in self._differentiated)
        if self._out_u is None or seen:
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
        state, cond = self.state, self.state.cond if cond is None else cond
        result = RewardGradient(
            state.i, state.t, state.prompts, state.seeds, c=cond.sequence.detach(), x0bar=state.xt
        ).replace(decode=self.backbone.decode)
        if wrt not in WRT:
            raise unknown("variable", wrt, WRT)
        if seen not in SEEN:
            raise unknown("view of the reward", seen, SEEN)
        if reward is None:
            with torch.no_grad():
                return result.replace(x0bar=self.predict(cond).x0bar.detach())
        self._unconditional()
        self._differentiated.append(cond)
        parts = []
        for rows, part in self.parts():
            parts.append(part._value_and_grad(reward, cond[rows], wrt != "sequence", seen))
        gathered = {
            name: torch.cat([p[name] for p in parts]) for name in parts[0] if name != "terms"
        }
        names = parts[0]["terms"]
        terms = {name: torch.cat([p["terms"][name] for p in parts]) for name in names}
        return result.replace(terms=terms, **gathered)

    def reward_gradient(
        self, reward: Callable, latents: Tensor, terms: dict | None = None
    ) -> tuple[Tensor, Tensor]:
        """The first half: h (B,) and its gradient in the latents, through decoder and reward only.

        latents: x0bar, (B, C, H, W); terms: a dict that receives the values of a combined reward's
        parts.
        """
        values, gradients, slices = [], [], []
        for rows, part in self.parts(self.memory.decode_batch):
            slices.append({})
            h, grad = part._decoded_gradient(reward, latents[rows], slices[-1])
            values.append(h)
            gradients.append(grad)
        if terms is not None:
            terms |= {name: torch.cat([s[name] for s in slices]) for name in slices[0]}
        return torch.cat(values), torch.cat(gradients)

    def vjp(self, cond: Conditioning, grad_x0bar: Tensor, *, pooled: bool = False) -> list[Tensor]:
        """The second half: (d x0bar / d c)^T grad_x0bar through the network, [(B, L, D)].

        Masked positions get zero. pooled: whether the gradient in the pooled vector, (B, P),
        follows.
        """
        x0bar, leaves = self._graph(cond, pooled)
        return self._backward(x0bar, leaves, cond, grad_x0bar)

    def vjp_xt(self, cond: Conditioning, grad_x0bar: Tensor) -> Tensor:
        """The same where xt moves:

        (d x0bar / d xt)^T grad_x0bar through both branches, (B, C, H, W).
        """
        power = _power(grad_x0bar)
        with torch.enable_grad(), self.backbone.checkpointing(self.memory.checkpointing):
            leaf = self.state.xt.detach().requires_grad_()
            x0bar = self._predict(cond, leaf).x0bar
            cotangent = torch.ldexp(grad_x0bar, -power).to(x0bar.dtype)
            (grad,) = torch.autograd.grad(x0bar, leaf, cotangent)
        grad = torch.ldexp(grad.to(x0bar.dtype), power)
        check_finite(grad, "grad_xt h is not finite", self.where, self._offset)
        return grad

    @torch.no_grad()
    def reward_of(self, reward: Callable, latents: Tensor, where: str = "") -> Tensor:
        """h of latents (B, C, H, W), without gradient, (B,)."""
        decode, values = decoder_of(reward, self.backbone), []
        for rows, part in self.parts(self.memory.decode_batch):
            prompts = part.state.prompts
            values.append(
                score(reward, decode(latents[rows]), prompts, where or self.where, part._offset)
            )
        return torch.cat(values)

    def seen_latents(self, x0bar: Tensor, seen: str) -> Tensor:
        """What the reward judges:

        x0bar, or the xt that DDIM's mean would lead to; carries gradient.
        """
        if seen == "x0bar":
            return x0bar
        i, solver = self.state.i, self.solver
        alpha, sigma = solver.level(i)
        eps = (self.state.xt.to(x0bar) - alpha * x0bar) / sigma
        return solver.noised(x0bar, eps, i + 1)

    def at(self, xt: Tensor) -> Denoiser:
        """The same step at another latent, (B, C, H, W)."""
        return self._like(self.state.replace(xt=xt), 0)

    def parts(self, size: int | None = None) -> Iterator[tuple[slice, Denoiser]]:
        """Rows and a denoiser of them alone, `memory.micro_batch` samples at a time, `size` at
        most.
        """
        count = len(self.state)
        size = min(n for n in (size, self.memory.micro_batch, count) if n is not None)
        for start in range(0, count, size):
            rows = slice(start, min(start + size, count))
            part = self._like(self.state[rows], start)
            part._out_u = None if self._out_u is None else self._out_u[rows]
            yield rows, part

    def _like(self, state: State, start: int) -> Denoiser:
        other = Denoiser(self.backbone, self.solver, self.guidance_scale, state, self.memory)
        other.one_batch, other._pass = self.one_batch, self._pass
        other._offset = self._offset + start
        return other

    def _value_and_grad(self, reward, cond: Conditioning, pooled: bool, seen: str) -> dict:
        terms: dict[str, Tensor] = {}
        if self.memory.keep_graph:  # the network's graph waits for the reward's gradient
            x0bar, leaves = self._graph(cond, pooled)
        else:
            with torch.no_grad():
                x0bar = self._conditional(cond)
        leaf = x0bar.detach().requires_grad_()
        with torch.enable_grad():
            latents = self.seen_latents(leaf, seen)
        h, grad_x0bar = self.reward_gradient(reward, latents.detach(), terms)
        if latents is not leaf:
            (grad_x0bar,) = torch.autograd.grad(latents, leaf, grad_x0bar)
        if not self.memory.keep_graph:
            x0bar, leaves = self._graph(cond, pooled)
        grads = self._backward(x0bar, leaves, cond, grad_x0bar)
        result = {"x0bar": x0bar.detach(), "h": h, "grad_x0bar": grad_x0bar, "terms": terms}
        return result | dict(zip(("grad", "grad_pooled"), grads, strict=False))

    def _decoded_gradient(self, reward, latents: Tensor, terms: dict) -> tuple[Tensor, Tensor]:
        with torch.enable_grad(), self.backbone.checkpointing(self.memory.checkpointing):
            leaf = latents.detach().requires_grad_()
            images = decoder_of(reward, self.backbone)(leaf)
            h = score(reward, images, self.state.prompts, self.where, self._offset, terms)
            grad = None
            if h.requires_grad:
                (grad,) = torch.autograd.grad(h.sum(), leaf, allow_unused=True)
        if grad is None:
            raise RewardError(
                "the reward carries no gradient to the images; write it with differentiable torch "
                "operations"
            )
        check_finite(grad, "the reward's gradient in x0bar is not finite", self.where, self._offset)
        for name in terms:
            terms[name] = terms[name].detach()
        return h.detach(), grad

    def _graph(self, cond: Conditioning, pooled: bool) -> tuple[Tensor, list[Tensor]]:
        """x0bar with its graph to the embedding, and the leaves to differentiate it in."""
        leaves = {"sequence": cond.sequence.detach().requires_grad_()}
        if pooled:
            leaves["pooled"] = cond.pooled.detach().requires_grad_()
        with torch.enable_grad(), self.backbone.checkpointing(self.memory.checkpointing):
            return self._conditional(cond.replace(**leaves)), list(leaves.values())

    def _backward(self, x0bar, leaves, cond: Conditioning, grad_x0bar: Tensor) -> list[Tensor]:
        power = _power(grad_x0bar)
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
        """The unconditional output, once a step: the embedding that moves is not in it."""
        if self.guided and self._out_u is None:
            with torch.no_grad():
                self._out_u = self._network(self.state.xt, self.state.uncond, "uncond")

    def _conditional(self, cond: Conditioning) -> Tensor:
        """x0bar from the conditional branch at cond and the unconditional output of this step."""
        self._unconditional()
        xt = self.state.xt.detach()
        return self._combine(self._out_u, self._network(xt, cond, "cond"), xt).x0bar

    def _predict(self, cond: Conditioning, xt: Tensor) -> Prediction:
        """Both branches as one batch or one after the other, as the family's own pipeline does it.
        """
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
        self._pass.branch, self._pass.first = branch, self._offset
        if self.state.uncond is None:
            cond = self.backbone.with_guidance(cond, self.guidance_scale)
        try:
            scaled = self.solver.scale_input(xt, self.state.i)
            return self.backbone.predict(scaled, self.state.t, cond)
        finally:
            self._pass.branch, self._pass.first = None, 0

    def _combine(self, out_u: Tensor | None, out_c: Tensor, xt: Tensor) -> Prediction:
        i, solver = self.state.i, self.solver
        exact = torch.promote_types(xt.dtype, torch.float32)
        xt, out, eps_u = xt.to(exact), out_c, None
        if out_u is not None:
            out = self.backbone.guide(out_u, out_c, self.guidance_scale)
            eps_u = solver.eps(out_u.to(exact), xt, i)
        return Prediction(
            x0bar=solver.x0bar(out.to(exact), xt, i),
            out=out,
            eps=solver.eps(out.to(exact), xt, i),
            eps_c=solver.eps(out_c.to(exact), xt, i),
            eps_u=eps_u,
            out_u=out_u,
        )


def _power(grad: Tensor) -> Tensor:
    """The power of two that brings each sample near 1, exactly; (B, 1, 1, 1).

    With it half precision does not lose small gradients.
    """
    return per_sample(torch.frexp(norm(grad))[1].clamp(-100, 100), grad)
