"""A method from inside diffusers: as `callback_on_step_end` of a pipeline's own call."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from . import noise
from .backbones import Backbone, wrap
from .inputs import check_method
from .memory import MemorySettings
from .methods import Method
from .run import History
from .sampler import Sampler
from .tensors import distance
from .types import Conditioning, RewardGradient, State, StepInfo

FOLLOWED = {  # what a user may say in a pipeline's call
    "prompt", "negative_prompt", "height", "width", "num_inference_steps", "guidance_scale", "eta",
    "true_cfg_scale", "max_sequence_length", "generator", "latents", "output_type", "return_dict",
    "use_resolution_binning",
}  # fmt: skip
MOVED = {  # what a callback may change, and what it is called in the pipeline's call
    "prompt_embeds": "prompt_embeds",
    "add_text_embeds": "pooled_prompt_embeds",
    "pooled_prompt_embeds": "pooled_prompt_embeds",
}


class Follower:
    """A method in a denoising loop of diffusers: it chooses what the loop feeds its network.

    sampler: what the last call amounts to; history: as `Run.history`, with None for what would cost
    another pass of the network: x0bar_hat, eps_u, eps_c, and x0bar where the method took no
    gradient.
    """

    def __init__(self, method: Method, **memory: Any) -> None:
        check_method(method)
        self.method, self.sampler = method, None
        self._memory = vars(MemorySettings(**memory))
        self._past: list[tuple[StepInfo, State]] = []  # of each step, with its embedding
        if set(method.stages) - {"condition"} or type(method).repeats is not Method.repeats:
            raise ValueError(f"{method!r} does more than move the embedding: use dk.Sampler")

    @property
    def history(self) -> History:
        """What the method did before each step of the last call."""
        return History(info for info, _ in self._past)

    def begin(self, state: State) -> Conditioning:
        """The embedding for step 0."""
        self._past = []
        return self._choose(state)

    def follow(self, i: int, xt: torch.Tensor) -> Conditioning:
        """The embedding for step i at its latents, (B, C, h, w)."""
        del self._past[i:]  # of an earlier call with the same arguments
        state, t = self._past[-1][1], self.sampler.solver_for(xt.shape).timesteps[i]
        return self._choose(state.replace(xt=xt.to(state.xt), i=i, t=t))

    def _choose(self, state: State) -> Conditioning:
        with self.sampler.pause(state) as denoiser:
            update = self.method.condition(denoiser, state)
        cond, place = update.cond, (state.i, state.t, state.prompts, state.seeds)
        seen = update.gradient or RewardGradient(*place, cond.sequence, None)
        known = {"at": seen.c, "c": cond.sequence, "xt": state.xt, "updated": update.moved}
        known |= {"distance": distance(cond, state.cond_org), "extras": dict(denoiser.extras)}
        following = state.replace(cond=cond, extras=state.extras | update.carry)
        self._past.append((StepInfo(**vars(seen) | known), following))
        return cond


class callback(Follower):
    """A method that moves the text embedding, for a pipeline's own call in anybody's script.

        guide = dk.callback(dk.DATE(reward, rho=0.5), pipe)
        images = pipe(**guide.arguments("a red circle", guidance_scale=7.5)).images

    The pipeline's weights are frozen, as by `dk.wrap`. memory: what `MemorySettings` takes. Raises
    TypeError for a pipeline, or ValueError for a method, that this cannot serve. Where the pipeline
    adds noise (eta above 0), that is drawn from its generators, not as `dk.Sampler` draws it.
    """

    def __init__(self, method: Method, pipe: Any, **memory: Any) -> None:
        backbone, moving = wrap(pipe), getattr(pipe, "_callback_tensor_inputs", ())
        name, self._family = backbone.name, type(backbone)
        self.pipe, self._signature = pipe, inspect.signature(pipe)
        self._moved = [tensor for tensor in MOVED if tensor in moving]
        if "callback_on_step_end" not in self._signature.parameters:
            raise TypeError(f"{name} has no callback_on_step_end; use dk.Sampler")
        super().__init__(method, **memory)
        if getattr(method, "update", "sequence") != "sequence" and len(self._moved) < 2:
            raise ValueError(f"a callback of {name} cannot move a pooled vector: use dk.Sampler")

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
        scale, settings = _settings(call, self._family)
        backbone = wrap(self.pipe, **settings)
        told = {"num_steps": call["num_inference_steps"], "eta": call.get("eta", 0.0)}
        told |= {"guidance_scale": _w(backbone, scale)} | self._memory
        self.sampler = Sampler(backbone, self.method, solver="own", **told)
        state = self._start(call)
        branches = {"": self.begin(state)}
        if state.uncond is not None and self.sampler.guidance_scale != 1:
            branches["negative_"] = state.uncond
        for sign, cond in branches.items():
            fed = backbone.call_arguments(cond)
            call |= {f"{sign}{name}": value for name, value in fed.items()}
        call |= dict.fromkeys(call.keys() & {"prompt", "negative_prompt"})
        call["callback_on_step_end_tensor_inputs"] = ["latents", *self._moved]
        return call | {"callback_on_step_end": self}

    def __call__(self, pipe: Any, step: int, timestep: Any, tensors: dict) -> dict:
        """What diffusers calls after each step: latents as they are, and the next embedding."""
        expected = None if self.sampler is None else self.sampler.num_steps
        if expected is None or getattr(pipe, "num_timesteps", expected) != expected:
            told = "call pipe(**guide.arguments(...)), which is told all settings of the call"
            raise RuntimeError(f"dk.callback has not prepared this call: {told}")
        if step + 1 == self.sampler.num_steps:
            return {}
        xt = self._unpack(tensors["latents"], self._past[0][1].xt.shape)
        fed = self.sampler.backbone.call_arguments(self.follow(step + 1, xt))
        for name in self._moved:
            part = fed[MOVED[name]]
            if isinstance(part, torch.Tensor):  # with guidance the negative rows come first
                kept = tensors[name][: -len(xt)]
                part = torch.cat([kept, part.to(kept)])
            tensors[name] = part
        return tensors

    def _start(self, call: dict) -> State:
        """The state before step 0; the call gets the noise."""
        from diffusers.utils.torch_utils import randn_tensor

        backbone, prompts, generator = self.sampler.backbone, call["prompt"], call["generator"]
        prompts = [prompts] if isinstance(prompts, str) else prompts or []
        seeds, size = seeds_of(generator, len(prompts)), (call["height"], call["width"])
        if call.get("use_resolution_binning"):
            size = backbone.binned(*size)
        shape = len(seeds or prompts), *backbone.latent_shape(*size)
        if call["latents"] is None:
            told = {"device": backbone.device, "dtype": backbone.noise_dtype}
            call["latents"] = backbone.pack(randn_tensor(shape, generator, **told))
        known = {"seeds": seeds, "negative_prompts": call.get("negative_prompt")}
        known |= {"latents": self._unpack(call["latents"], shape)}
        return self.sampler.init(prompts, **known, height=size[0], width=size[1])

    def _unpack(self, latents: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """The latents of the pipeline's loop as (B, C, h, w)."""
        return latents if latents.ndim == 4 else self.sampler.backbone.unpack(latents, shape)


def _settings(call: dict, family: type[Backbone]) -> tuple[float, dict]:
    """The scale of guidance, and settings of the backbone: a distilled model has its own scale."""
    scale, true_scale = call["guidance_scale"], call.get("true_cfg_scale")
    told = {"text_length": call["max_sequence_length"]} if "max_sequence_length" in call else {}
    if true_scale is None:
        return scale, told
    if call["negative_prompt"] is None or true_scale <= 1:
        call["negative_prompt"] = None  # diffusers does not look at it either
        return 1.0 if family.two_branches else scale, told
    if "distilled_guidance" in family.load_settings:
        told["distilled_guidance"] = scale
    return true_scale, told


def _w(backbone: Backbone, scale: float) -> float:
    """The sampler's w for a scale of the pipeline's, which up to some number does not guide."""
    off = backbone.unguided_scale
    return max(scale, off) + (1.0 - off) if backbone.two_branches else scale


def seeds_of(generator: Any, count: int) -> list[int] | None:
    """What a method draws from, one a picture: the generators' own seeds, fresh ones for None."""
    if generator is None or isinstance(generator, list):
        return generator and [source.initial_seed() % 2**63 for source in generator]
    seed = generator.initial_seed() % 2**63
    return [noise.derived(seed, row, "picture") if row else seed for row in range(count)]
