"""A method from inside diffusers: as `callback_on_step_end` of a pipeline's own call."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from . import noise
from .backbones import wrap
from .memory import MemorySettings
from .methods import Method
from .run import History
from .sampler import Sampler
from .tensors import distance
from .types import RewardGradient, State, StepInfo

FOLLOWED = {  # what a user may say in a pipeline's call
    "prompt", "negative_prompt", "height", "width", "num_inference_steps", "guidance_scale", "eta",
    "true_cfg_scale", "max_sequence_length", "generator", "latents", "output_type", "return_dict",
}  # fmt: skip
# What a callback may change, by the names of `Conditioning`.
MOVED = {"prompt_embeds": "sequence", "add_text_embeds": "pooled", "pooled_prompt_embeds": "pooled"}


class callback:
    """A method that moves the text embedding, for a pipeline's own call in anybody's script.

        guide = dk.callback(dk.DATE(reward, rho=0.5), pipe)
        images = pipe(**guide.arguments("a red circle", guidance_scale=7.5)).images

    The pipeline's weights are frozen, as by `dk.wrap`. memory: what `MemorySettings` takes. Raises
    TypeError for a pipeline, or ValueError for a method, that this cannot serve. sampler: what the
    last call amounts to; history: as `Run.history`, with None for what would cost another pass of
    the network: x0bar_hat, eps_u, eps_c, and x0bar where the method took no gradient.
    """

    def __init__(self, method: Method, pipe: Any, **memory: Any) -> None:
        name, moving = wrap(pipe).name, getattr(pipe, "_callback_tensor_inputs", ())
        self.method, self.pipe, self.sampler = method, pipe, None
        self._memory, self._signature = vars(MemorySettings(**memory)), inspect.signature(pipe)
        self._moved = [tensor for tensor in MOVED if tensor in moving]
        self._past: list[tuple[StepInfo, State]] = []  # of each step, with its embedding
        if "callback_on_step_end" not in self._signature.parameters:
            raise TypeError(f"{name} has no callback_on_step_end: sample with dk.Sampler")
        if set(method.stages) - {"condition"} or type(method).repeats is not Method.repeats:
            raise ValueError(f"{method!r} does more than move the embedding: use dk.Sampler")
        if getattr(method, "update", "sequence") != "sequence" and len(self._moved) < 2:
            raise ValueError(f"a callback of {name} cannot move a pooled vector: use dk.Sampler")

    @property
    def history(self) -> History:
        """What the method did before each step of the last call."""
        return History(info for info, _ in self._past)

    def arguments(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The arguments of the pipeline's call, `pipe(**guide.arguments(...))`; takes the same.

        The embedding of step 0 replaces the prompts, one a picture. It depends on the initial
        noise, which is what the pipeline would draw. Raises ValueError for what is not `FOLLOWED`.
        """
        bound = self._signature.bind(*args, **kwargs)
        if others := bound.arguments.pop("kwargs", {}).keys() | bound.arguments.keys() - FOLLOWED:
            raise ValueError(f"dk.callback cannot follow {', '.join(others)}: leave it out")
        bound.apply_defaults()
        call = {name: value for name, value in bound.arguments.items() if name != "kwargs"}
        w, settings = _settings(call)
        told = {"num_steps": call["num_inference_steps"], "guidance_scale": w} | self._memory
        self.sampler = Sampler(wrap(self.pipe, **settings), self.method, solver="own", **told)
        state = self._start(call)
        if more := ", ".join(state.cond.extras):
            raise ValueError(f"no callback changes embeddings that have {more}: use dk.Sampler")
        self._past = [self._choose(state)]
        branches = {"": self._past[0][1].cond}
        if state.uncond is not None and w != 1:
            branches["negative_"] = state.uncond
        for sign, cond in branches.items():
            call[f"{sign}prompt_embeds"] = cond.sequence.to(state.xt)
            if cond.pooled is not None:
                call[f"{sign}pooled_prompt_embeds"] = cond.pooled.to(state.xt)
        call["callback_on_step_end_tensor_inputs"] = ["latents", *self._moved]
        return call | {"prompt": None, "negative_prompt": None, "callback_on_step_end": self}

    def __call__(self, pipe: Any, step: int, timestep: Any, tensors: dict) -> dict:
        """What diffusers calls after each step: latents as they are, and the next embedding."""
        del self._past[step + 1 :]  # of an earlier call with these arguments
        state, i = self._past[-1][1], step + 1
        if i < self.sampler.num_steps:
            xt = self._unpack(tensors["latents"], state.xt.shape)
            t = self.sampler.solver_for(xt.shape).timesteps[i]
            self._past.append(self._choose(state.replace(xt=xt, i=i, t=t)))
        cond = self._past[-1][1].cond
        for name in self._moved:  # with guidance the negative rows come first, and stay
            kept = tensors[name][: -len(cond)]
            tensors[name] = torch.cat([kept, getattr(cond, MOVED[name]).to(kept)])
        return tensors

    def _start(self, call: dict) -> State:
        """The state before step 0; the call gets the noise."""
        from diffusers.utils.torch_utils import randn_tensor

        backbone, prompts, generator = self.sampler.backbone, call["prompt"], call["generator"]
        prompts = [prompts] if isinstance(prompts, str) else prompts or []
        seeds, size = _seeds(generator, len(prompts)), (call["height"], call["width"])
        shape = len(seeds or prompts), *backbone.latent_shape(*size)
        if call["latents"] is None:
            xt = randn_tensor(shape, generator, device=backbone.device, dtype=backbone.dtype)
            pack = getattr(self.pipe, "_pack_latents", None)  # FLUX makes one token of four cells
            call["latents"] = pack(xt, *shape) if pack else xt
        known = {"seeds": seeds, "negative_prompts": call["negative_prompt"]}
        known |= {"latents": self._unpack(call["latents"], shape)}
        return self.sampler.init(prompts, **known, height=size[0], width=size[1])

    def _choose(self, state: State) -> tuple[StepInfo, State]:
        """What the method does before a step, and the state with the embedding for it."""
        with self.sampler.pause(state) as denoiser:
            update = self.method.condition(denoiser, state)
        cond, place = update.cond, (state.i, state.t, state.prompts, state.seeds)
        seen = update.gradient or RewardGradient(*place, cond.sequence, None)
        known = {"at": seen.c, "c": cond.sequence, "xt": state.xt, "updated": update.moved}
        known |= {"distance": distance(cond, state.cond_org), "extras": dict(denoiser.extras)}
        following = state.replace(cond=cond, extras=state.extras | update.carry)
        return StepInfo(**vars(seen) | known), following

    def _unpack(self, latents: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """The latents of the pipeline's loop as (B, C, h, w)."""
        factor = self.sampler.backbone.factor
        size = [side * factor for side in shape[-2:]]
        return latents if latents.ndim == 4 else self.pipe._unpack_latents(latents, *size, factor)


def _settings(call: dict) -> tuple[float, dict]:
    """w as the sampler takes it, and settings of the backbone: a distilled model has its scale."""
    scale, true_scale = call["guidance_scale"], call.get("true_cfg_scale")
    told = {"text_length": call["max_sequence_length"]} if "max_sequence_length" in call else {}
    if true_scale is None:
        return max(scale, 1.0), told  # up to 1 diffusers does not guide
    if call["negative_prompt"] is not None and true_scale > 1:
        return true_scale, told | {"distilled_guidance": scale}
    call["negative_prompt"] = None  # diffusers does not look at it either
    return scale, told


def _seeds(generator: Any, count: int) -> list[int] | None:
    """What a method draws from, one a picture: the generators' own seeds, fresh ones for None."""
    if generator is None or isinstance(generator, list):
        return generator and [source.initial_seed() % 2**63 for source in generator]
    seed = generator.initial_seed() % 2**63
    return [noise.derived(seed, row, "picture") if row else seed for row in range(count)]
