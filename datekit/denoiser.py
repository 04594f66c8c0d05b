"""One paused step, looked at: predictions at any embedding, and the reward's gradient in two halves.

The chain rule grad_c h_t = (d x0bar / d c)^T grad_{x0bar} h is taken from its two ends: `reward_gradient` decodes and
scores x0bar, `pull_back` carries the result through the network. The reward's graph is gone before the network's backward.
Either the network's graph is built only then, so that the two are never in memory together, for one more forward pass; or it
is kept from the forward pass that gave x0bar, where memory allows. Both give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import SimpleNamespace

import torch
from torch import Tensor

from .errors import RewardError
from .memory import GraphSizes, Limits, modules_of, weights
from .rewards.base import check_finite, decoder_of, score
from .types import Conditioning, RewardGradient, Prediction, State, norm


class Denoiser:
    """The view that a method has of a `State`; nothing here advances it.

    limits: how much of the batch is in memory at once. While the network runs, `branch` is "uncond", "cond", or "both" (the unconditional
    rows first), and `first` is the number of the first sample that it computes. notes: tensors (B, ...) that what is installed in the
    network leaves for `StepInfo.notes`.
    """

    def __init__(
        self, backbone, solver, guidance_scale: float, state: State, limits: Limits | None = None
    ) -> None:
        self.backbone, self.solver, self.guidance_scale, self.state = (
            backbone,
            solver,
            guidance_scale,
            state,
        )
        self.limits = limits or Limits()
        self.notes: dict[str, Tensor] = {}
        self._running: list = [
            None,
            0,
        ]  # `branch` and `first`: a list, as the probes of some of the samples share it
        self._first = 0
        self._out_u: Tensor | None = None
        self._known: list[tuple[Conditioning, Prediction]] = []
        self._looked: list[Conditioning] = []

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return self.solver.num_steps

    @property
    def branch(self) -> str | None:
        """Which rows the network is computing right now; None while it does not run."""
        return self._running[0]

    @property
    def first(self) -> int:
        """The number of the first sample that the network is computing right now; 0 while it does not run."""
        return self._running[1]

    @property
    def guided(self) -> bool:
        """Whether there is a second branch to guide with."""
        return self.state.uncond is not None and self.guidance_scale != 1

    def predict(self, cond: Conditioning | None = None, xt: Tensor | None = None) -> Prediction:
        """x0bar and the guided output, out_u + w (out_c - out_u), at (xt, cond); carries gradient to both, either mode.

        Both branches run as one batch, or one after the other, as the family's pipeline in diffusers does, to the same bits.
        """
        cond = self.state.cond if cond is None else cond
        xt = self.state.xt if xt is None else xt
        if not self.guided:
            return self._combine(None, self._forward(xt, cond, "cond"), xt)
        if not self.backbone.one_batch:
            return self._combine(
                self._forward(xt, self.state.uncond, "uncond"), self._forward(xt, cond, "cond"), xt
            )
        out_u, out_c = self._forward(
            torch.cat([xt, xt]), Conditioning.cat([self.state.uncond, cond]), "both"
        ).chunk(2)
        return self._combine(out_u, out_c, xt)

    def recall(self, cond: Conditioning) -> Prediction:
        """`predict` at the state's own xt, remembered for this step: an embedding asked about again costs nothing, and another
        one costs its conditional branch only. An embedding that was merely looked at is predicted as the pipeline does, both branches
        in one batch, so that a look does not change what a step gives. Carries gradient to `state.xt` where that asks for it.
        """
        if self.state.xt.requires_grad or cond.sequence.requires_grad:
            return self.predict(cond)
        for known, prediction in self._known:
            if known.same(cond):
                return prediction
        if self._out_u is None or any(seen.same(cond) for seen in self._looked):
            prediction = self.predict(cond)
            self._out_u = prediction.out_u
        else:
            prediction = self._combine(
                self._out_u, self._forward(self.state.xt, cond, "cond"), self.state.xt
            )
        self._known.append((cond, prediction))
        return prediction

    def look(
        self,
        reward: Callable | None = None,
        cond: Conditioning | None = None,
        *,
        pooled: bool = False,
        keep_graph: bool | None = None,
    ) -> RewardGradient:
        """x0bar at (xt, cond) and, given a reward, h, grad_{x0bar} h and grad_c h, of the pooled vector too if asked; all detached.

        With a reward the unconditional branch runs once for the whole step, the conditional one as `limits` say, which are lowered
        where they are the sampler's to choose and memory runs out; keep_graph: whether the network's graph waits for the reward's
        gradient (one forward pass less, and both graphs in memory together), None for where free memory allows. Raises NonFiniteError
        (step and sample named) for a reward or gradient that is not finite, RewardError for one of the wrong shape or without gradient,
        torch.OutOfMemoryError that says what to turn.
        """
        state, cond = self.state, self.state.cond if cond is None else cond
        look = RewardGradient(
            i=state.i,
            t=state.t,
            prompts=state.prompts,
            seeds=state.seeds,
            c=cond.sequence.detach(),
            x0bar=state.xt,
            decode=self.backbone.decode,
        )
        if reward is None:
            with torch.no_grad():
                return look.replace(x0bar=self.recall(cond).x0bar.detach())
        self._unconditional()
        self._looked.append(cond)
        found = self.within_memory(
            reward,
            keep_graph,
            lambda: [
                part._halves(reward, cond[rows], rows.start, pooled, keep_graph)
                for rows, part in self.parts()
            ],
        )
        terms = [values for values, *_ in found]
        x0bar, h, grad_x0bar, *grads = (
            torch.cat(parts) for parts in zip(*(tensors for _, *tensors in found), strict=True)
        )
        return look.replace(
            x0bar=x0bar,
            h=h,
            grad_x0bar=grad_x0bar,
            grad=grads[0],
            grad_pooled=grads[1] if pooled else None,
            terms={name: torch.cat([part[name] for part in terms]) for name in terms[0]},
        )

    def within_memory(
        self,
        reward: Callable,
        keep_graph: bool | None,
        call: Callable[[], list],
        stage: str = "condition",
    ) -> list:
        """What a call over `parts` gives, repeated with lower limits while memory runs out; at the end the error says what to turn.

        stage: the hook of `methods.STAGES` that calls.
        """
        from .advice import told

        method, limits = (
            SimpleNamespace(reward=reward, keep_graph=keep_graph, rewards={stage: reward}),
            self.limits,
        )
        return limits.within(
            call,
            len(self.state),
            lambda error: told(
                error,
                self.backbone,
                method,
                len(self.state),
                shape=tuple(self.state.xt.shape[1:]),
                micro_batch=limits.micro_batch,
                decode_batch=limits.decode_batch,
                guidance_scale=self.guidance_scale,
                checkpointing=limits.checkpointing,
            ),
        )

    def _halves(
        self, reward: Callable, cond: Conditioning, first: int, pooled: bool, keep: bool | None
    ) -> tuple:
        """(terms, x0bar, h, grad_x0bar, grad, ...): both halves of the chain rule, in one of the two orders."""
        terms: dict[str, Tensor] = {}
        sizes = GraphSizes.of(
            self.backbone,
            self.state.xt,
            reward,
            self.limits.checkpointing,
            self.limits.decode_batch,
        )
        known = lambda: weights(*modules_of(self.backbone, reward))
        measured = (
            (lambda half: sizes.measured(half, known))
            if keep is None
            else lambda half: nullcontext()
        )
        if sizes.fit(self.backbone.device) if keep is None else keep:
            x0bar, leaves = self._graph(cond, pooled)
            h, grad_x0bar = self.reward_gradient(reward, x0bar, first, terms)
            return (
                terms,
                x0bar.detach(),
                h,
                grad_x0bar,
                *self._carried(x0bar, leaves, cond, grad_x0bar, first),
            )
        with torch.no_grad():
            x0bar = self._conditional(cond)
        with measured("reward"):
            h, grad_x0bar = self.reward_gradient(reward, x0bar, first, terms)
        with measured("network"):
            grads = self.pull_back_to(cond, grad_x0bar, first, pooled=pooled)
        return terms, x0bar, h, grad_x0bar, *grads

    def reward_gradient(
        self,
        reward: Callable,
        x0bar: Tensor,
        first: int = 0,
        terms: dict[str, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The first half: h (B,) and grad_{x0bar} h (B, C, H, W), through decoder and reward only.

        first: the number that error messages give to the first sample; terms: a dictionary that receives the values of a
        combined reward's parts.
        """
        if self.limits.decode_batch is not None and self.limits.decode_batch < len(x0bar):
            return self._in_slices(reward, x0bar, first, terms)
        with torch.enable_grad(), self.backbone.checkpointing(self.limits.checkpointing):
            leaf = x0bar.detach().requires_grad_()
            h = score(
                reward,
                decoder_of(reward, self.backbone)(leaf),
                self.state.prompts,
                self.where,
                first,
                terms,
            )
            grad = (
                torch.autograd.grad(h.sum(), leaf, allow_unused=True)[0]
                if h.requires_grad
                else None
            )
        if grad is None:
            raise RewardError(
                "the reward carries no gradient to the images; write it with differentiable torch operations"
            )
        check_finite(grad, "the reward's gradient in x0bar is not finite", self.where, first)
        for name in terms or ():
            terms[name] = terms[name].detach()
        return h.detach(), grad

    def _in_slices(
        self, reward: Callable, x0bar: Tensor, first: int, terms: dict[str, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        found, parts = [], []
        size = self.limits.decode_batch
        for start in range(0, len(x0bar), size):
            rows = slice(start, start + size)
            parts.append({})
            found.append(
                self._rows(rows).reward_gradient(reward, x0bar[rows], first + start, parts[-1])
            )
        if terms is not None:
            terms |= {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        h, grad = (torch.cat(each) for each in zip(*found, strict=True))
        return h, grad

    def pull_back(self, cond: Conditioning, grad_x0bar: Tensor, first: int = 0) -> Tensor:
        """The second half: (d x0bar / d c)^T grad_x0bar through the network, (B, L, D); masked positions get zero."""
        return self.pull_back_to(cond, grad_x0bar, first)[0]

    def pull_back_to(
        self, cond: Conditioning, grad_x0bar: Tensor, first: int = 0, *, pooled: bool = False
    ) -> list[Tensor]:
        """The same as a list, followed, if asked for, by the gradient in the pooled vector, (B, P)."""
        x0bar, leaves = self._graph(cond, pooled)
        return self._carried(x0bar, leaves, cond, grad_x0bar, first)

    def _graph(self, cond: Conditioning, pooled: bool) -> tuple[Tensor, list[Tensor]]:
        """x0bar with its graph to the embedding, and the leaves to differentiate it in."""
        with torch.enable_grad(), self.backbone.checkpointing(self.limits.checkpointing):
            leaves = [
                x.detach().requires_grad_() for x in (cond.sequence, cond.pooled)[: 1 + pooled]
            ]
            return self._conditional(
                cond.replace(**dict(zip(("sequence", "pooled"), leaves, strict=False)))
            ), leaves

    def _carried(
        self,
        x0bar: Tensor,
        leaves: list[Tensor],
        cond: Conditioning,
        grad_x0bar: Tensor,
        first: int,
    ) -> list[Tensor]:
        power = _power(grad_x0bar)
        with self.backbone.checkpointing(self.limits.checkpointing):
            grads = torch.autograd.grad(
                x0bar, leaves, torch.ldexp(grad_x0bar, -power).to(x0bar.dtype)
            )
        grads = [torch.ldexp(grad, power.view(-1, *[1] * (grad.ndim - 1))) for grad in grads]
        if cond.mask is not None:
            grads[0] = torch.where(cond.mask[..., None], grads[0], 0)
        for grad in grads:
            check_finite(grad, "grad_c h is not finite", self.where, first)
        return grads

    def pull_back_to_xt(self, cond: Conditioning, grad_x0bar: Tensor, first: int = 0) -> Tensor:
        """The second half where xt moves instead: (d x0bar / d xt)^T grad_x0bar through both branches, (B, C, H, W), float32 at least."""
        power = _power(grad_x0bar)
        with torch.enable_grad(), self.backbone.checkpointing(self.limits.checkpointing):
            leaf = self.state.xt.detach().requires_grad_()
            x0bar = self.predict(cond, leaf).x0bar
            (grad,) = torch.autograd.grad(
                x0bar, leaf, torch.ldexp(grad_x0bar, -power).to(x0bar.dtype)
            )
        grad = torch.ldexp(grad.to(x0bar.dtype), power)
        check_finite(grad, "grad_xt h is not finite", self.where, first)
        return grad

    def at(self, xt: Tensor) -> Denoiser:
        """The same step at another latent, (B, C, H, W)."""
        other = Denoiser(
            self.backbone, self.solver, self.guidance_scale, self.state.replace(xt=xt), self.limits
        )
        other._running, other._first = self._running, self._first
        return other

    def parts(self, size: int | None = None) -> Iterator[tuple[slice, Denoiser]]:
        """The samples `limits.micro_batch` at a time, or `size` where that is less: their rows, and a denoiser of them alone."""
        size = min(n for n in (size, self.limits.micro_batch, len(self.state)) if n is not None)
        for start in range(0, len(self.state), size):
            rows = slice(start, min(start + size, len(self.state)))
            yield rows, self._rows(rows)

    @property
    def where(self) -> str:
        """The step in words, for the end of an error."""
        return f" at step {self.state.i} (t = {self.state.t:g})"

    def _unconditional(self) -> None:
        """The unconditional output, once a step: the embedding that moves is not in it."""
        if self.guided and self._out_u is None:
            with torch.no_grad():
                self._out_u = self._forward(self.state.xt, self.state.uncond, "uncond")

    def _conditional(self, cond: Conditioning) -> Tensor:
        """x0bar from the conditional branch at `cond` and the unconditional output of this step."""
        self._unconditional()
        xt = self.state.xt.detach()
        return self._combine(self._out_u, self._forward(xt, cond, "cond"), xt).x0bar

    def _forward(self, xt: Tensor, cond: Conditioning, branch: str) -> Tensor:
        self._running[:] = branch, self._first
        if self.state.uncond is None:
            cond = self.backbone.with_guidance(cond, self.guidance_scale)
        try:
            return self.backbone.predict(
                self.solver.scale_input(xt, self.state.i), self.state.t, cond
            )
        finally:
            self._running[:] = None, 0

    def _combine(self, out_u: Tensor | None, out_c: Tensor, xt: Tensor) -> Prediction:
        i, solver = self.state.i, self.solver
        out = out_c if out_u is None else out_u + self.guidance_scale * (out_c - out_u)
        exact = torch.promote_types(xt.dtype, torch.float32)
        xt = xt.to(exact)
        as_eps = lambda raw: None if raw is None else solver.eps(raw.to(exact), xt, i)
        return Prediction(
            x0bar=solver.x0bar(out.to(exact), xt, i),
            out=out,
            eps=as_eps(out),
            eps_c=as_eps(out_c),
            eps_u=as_eps(out_u),
            out_u=out_u,
        )

    def _rows(self, rows: slice) -> Denoiser:
        part = Denoiser(self.backbone, self.solver, self.guidance_scale, self.state[rows], self.limits)
        part._out_u = None if self._out_u is None else self._out_u[rows]
        part._running, part._first = self._running, self._first + rows.start
        return part


def _power(grad: Tensor) -> Tensor:
    """The power of two that brings each sample near 1, exactly, so that half precision does not lose small gradients; (B, 1, 1, 1)."""
    return torch.frexp(norm(grad))[1].clamp(-100, 100).view(-1, 1, 1, 1)
