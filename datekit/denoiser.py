"""The guided model at one paused step: x0bar(xt, c), and the gradient of a reward of it.

The chain rule grad_c h = (d x0bar / d c)^T grad_{x0bar} h is taken in two halves: `reward_gradient`
decodes and scores x0bar, `_pull_back` carries what it finds back through the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .backbones.patching import set_aside
from .errors import check_finite, check_gradient, check_layers
from .memory import MemorySettings
from .rewards.base import check_pull, decoder_of, score
from .tensors import per_sample, power_of_two
from .types import Conditioning, Prediction, RewardGradient, State


class Denoiser:
    """What a method sees of a `State`. Nothing here advances it.

    memory: how much of the batch is in memory at once; extras: tensors (B, ...) by name that the
    method wants in `StepInfo.extras`; branch: what the network computes now or did last, "uncond",
    "cond" or "both" (the unconditional rows first); first: the number of the first sample in it.
    """

    def __init__(self, backbone, solver, guidance_scale: float, state: State, memory=None) -> None:
        self.backbone, self.solver, self.guidance_scale = backbone, solver, guidance_scale
        self.state, self.memory = state, memory or MemorySettings()
        self.num_steps = solver.num_steps  # of the whole run
        self.guided = state.uncond is not None and guidance_scale != 1  # by a second branch
        self.where = f" at step {state.i} (t = {state.t:g})"  # the end of an error
        self.extras: dict[str, Tensor] = {}
        self.branch, self.first = "", 0
        self._whole, self._offset = None, 0  # the batch that this is a part of, and where it begins
        self._out_u: Tensor | None = None  # the unconditional output, once a gradient needed it
        self._looked_at: Conditioning | None = None  # where that gradient was taken

    def predict(self, cond: Conditioning | None = None, xt: Tensor | None = None) -> Prediction:
        """The guided prediction at (xt, cond), the state's own by default; carries gradient.

        After a gradient the unconditional output is known, and another embedding costs the
        conditional branch alone. Where the gradient was taken both branches run together as
        without it, so that an update by nothing changes no bit.
        """
        cond = self.state.cond if cond is None else cond
        xt = self.state.xt if xt is None else xt
        fresh = self._looked_at is None or xt is not self.state.xt or xt.requires_grad
        if fresh or cond.same(self._looked_at):
            return self._both_branches(cond, xt)
        return self._combine(self._out_u, self._network(xt, cond, "cond"), xt)

    def value_and_grad(
        self, reward: Callable | None, cond: Conditioning | None = None, *, pooled: bool = False
    ) -> RewardGradient:
        """x0bar at cond, its reward h, and the gradients of h in x0bar and in c; all detached.

        pooled: whether the gradient in the pooled vector is taken too. With reward None there is
        x0bar alone. Raises NonFiniteError (step and sample named) for a reward or gradient that is
        not finite, RewardError for a reward of another shape or without gradient.
        """
        cond = self.state.cond if cond is None else cond
        if reward is None:
            with torch.no_grad():
                return self.record(cond, self.predict(cond).x0bar)
        check_gradient(self.state.xt)
        check_layers(getattr(self.backbone, "network", None))
        if self.guided and self._out_u is None:  # no c is in it, so it is computed once a step
            with torch.no_grad():
                self._out_u = self._network(self.state.xt, self.state.uncond, "uncond")
        self._looked_at = cond
        parts = [part._gradient(reward, cond[rows], pooled) for rows, part in self.parts()]
        found = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return self.record(cond, **found)

    def record(self, cond: Conditioning, x0bar: Tensor, **known) -> RewardGradient:
        """x0bar at cond, detached, with what is known of its reward."""
        s, c = self.state, cond.sequence.detach()
        known |= {"x0bar": x0bar.detach(), "decode": self.backbone.decode}
        return RewardGradient(s.i, s.t, s.prompts, s.seeds, c, **known)

    def _gradient(self, reward, cond: Conditioning, pooled: bool) -> dict[str, Tensor]:
        """What `value_and_grad` finds for one part of the batch, by the names of its fields."""
        keep = self.memory.keep_graph  # whether the network's graph waits for the reward's gradient
        names = ("sequence", "pooled") if pooled else ("sequence",)
        leaves = {name: getattr(cond, name).detach().requires_grad_() for name in names}
        at = cond.replace(**leaves)
        x0bar = self._x0bar(at, graph=keep)
        h, grad_x0bar = self.reward_gradient(reward, x0bar)
        x0bar = x0bar if keep else self._x0bar(at, graph=True)
        if not x0bar.requires_grad:
            told = "no gradient passes this network to the embedding, perhaps for quantised layers"
            raise RuntimeError(f"{told}; load it in half precision, or quantise its weights alone")
        grads = self._pull_back(x0bar, list(leaves.values()), grad_x0bar)
        if cond.mask is not None:
            grads[0] = torch.where(cond.mask[..., None], grads[0], 0)
        for grad in grads:
            check_finite(grad, "grad_c h is not finite", self.where, self._offset)
        found = {"x0bar": x0bar.detach(), "h": h, "grad_x0bar": grad_x0bar}
        return found | dict(zip(("grad", "grad_pooled"), grads, strict=False))

    def _x0bar(self, cond: Conditioning, graph: bool) -> Tensor:
        """The guided x0bar from the conditional branch at cond and the known other output."""
        xt = self.state.xt.detach()
        with torch.set_grad_enabled(graph), self.backbone.checkpointing(self.memory.checkpointing):
            return self._combine(self._out_u, self._network(xt, cond, "cond"), xt).x0bar

    def reward_gradient(self, reward: Callable, x0bar: Tensor) -> tuple[Tensor, Tensor]:
        """The first half of the chain rule: h (B,) and its gradient in x0bar (B, C, H, W)."""
        values, grads = [], []
        check_gradient(self.state.xt)
        for rows in self._slices():
            leaf = x0bar[rows].detach().requires_grad_()
            with torch.enable_grad(), self.backbone.checkpointing(self.memory.checkpointing):
                h = self._score(reward, leaf, rows, self.where)
                grad = None
                if h.requires_grad:
                    (grad,) = torch.autograd.grad(h.sum(), leaf, allow_unused=True)
            check_pull(grad, self.where, self._offset + rows.start)
            values.append(h.detach())
            grads.append(grad)
        return torch.cat(values), torch.cat(grads)

    @torch.no_grad()
    def reward_of(self, reward: Callable, x0bar: Tensor, where: str) -> Tensor:
        """h of x0bar, without gradient, (B,); where: the end of an error."""
        return torch.cat([self._score(reward, x0bar[rows], rows, where) for rows in self._slices()])

    def _slices(self) -> list[slice]:
        """The rows that are decoded and scored together."""
        count = len(self.state)
        size = min(self.memory.decode_batch or count, self.memory.micro_batch or count)
        return [slice(start, start + size) for start in range(0, count, size)]

    def _score(self, reward, x0bar: Tensor, rows: slice, where: str) -> Tensor:
        """h of some rows, (B',); carries gradient to their x0bar."""
        backbone, prompts = self.backbone, self.state.prompts[rows]
        with set_aside(getattr(backbone, "network", backbone)):
            images = decoder_of(reward, backbone)(x0bar)
            return score(reward, images, prompts, where, self._offset + rows.start)

    def vjp_xt(self, cond: Conditioning, grad_x0bar: Tensor) -> Tensor:
        """(d x0bar / d xt)^T grad_x0bar through both branches, (B, C, H, W)."""
        leaf = self.state.xt.detach().requires_grad_()
        with torch.enable_grad(), self.backbone.checkpointing(self.memory.checkpointing):
            x0bar = self._both_branches(cond, leaf).x0bar
        (grad,) = self._pull_back(x0bar, [leaf], grad_x0bar)
        check_finite(grad, "grad_xt h is not finite", self.where, self._offset)
        return grad

    def _pull_back(self, x0bar: Tensor, leaves: list[Tensor], grad_x0bar: Tensor) -> list[Tensor]:
        """The second half: (d x0bar / d leaf)^T grad_x0bar through the network for each leaf."""
        power = power_of_two(grad_x0bar)  # half precision would lose a small gradient
        cotangent = torch.ldexp(grad_x0bar, -power).to(x0bar.dtype)
        with self.backbone.checkpointing(self.memory.checkpointing):
            grads = torch.autograd.grad(x0bar, leaves, cotangent)
        power = power.flatten()
        return [torch.ldexp(g.to(x0bar.dtype), per_sample(power, g)) for g in grads]

    def at(self, xt: Tensor) -> Denoiser:
        """The same step at another latent, (B, C, H, W)."""
        return self._part(self.state.replace(xt=xt), 0)

    def parts(self) -> Iterator[tuple[slice, Denoiser]]:
        """Rows and a denoiser of them alone, `memory.micro_batch` samples at a time."""
        size = self.memory.micro_batch or len(self.state)
        for start in range(0, len(self.state), size):
            rows = slice(start, start + size)
            part = self._part(self.state[rows], start)
            part._out_u = None if self._out_u is None else self._out_u[rows]
            yield rows, part

    def _part(self, state: State, start: int) -> Denoiser:
        """A denoiser of other samples or latents, whose passes count as this one's."""
        part = Denoiser(self.backbone, self.solver, self.guidance_scale, state, self.memory)
        part._whole, part._offset = self._whole or self, self._offset + start
        return part

    def _both_branches(self, cond: Conditioning, xt: Tensor) -> Prediction:
        """Both branches as one batch or one after the other, as the family's pipeline does it."""
        if self.guided and self.backbone.one_batch:
            both = Conditioning.cat([self.state.uncond, cond])
            out_u, out_c = self._network(torch.cat([xt, xt]), both, "both").chunk(2)
            return self._combine(out_u, out_c, xt)
        out_u = self._network(xt, self.state.uncond, "uncond") if self.guided else None
        return self._combine(out_u, self._network(xt, cond, "cond"), xt)

    def _network(self, xt: Tensor, cond: Conditioning, branch: str) -> Tensor:
        """The network's raw output for one branch or both."""
        whole, scaled = self._whole or self, self.solver.scale_input(xt, self.state.i)
        if self.state.uncond is None:
            cond = self.backbone.with_guidance(cond, self.guidance_scale)
        whole.branch, whole.first = branch, self._offset
        return self.backbone.predict(scaled, self.state.t, cond)

    def _combine(self, out_u: Tensor | None, out_c: Tensor, xt: Tensor) -> Prediction:
        """The guided prediction of the two outputs, in float32 at least; out_u None: unguided."""
        solver, i, out, eps_u = self.solver, self.state.i, out_c, None
        exact = torch.promote_types(xt.dtype, torch.float32)
        xt = xt.to(exact)
        if out_u is not None:
            out = self.backbone.guide(out_u, out_c, self.guidance_scale)
            eps_u = solver.eps(out_u.to(exact), xt, i)
        x0bar, eps = solver.x0bar(out.to(exact), xt, i), solver.eps(out.to(exact), xt, i)
        return Prediction(x0bar, out, eps, solver.eps(out_c.to(exact), xt, i), eps_u)
