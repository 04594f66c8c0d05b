"""A method as a block of a `diffusers.ModularPipeline`."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import diffusers
from diffusers.modular_pipelines import InputParam, ModularPipelineBlocks

from .backbones import Backbone, wrap
from .callbacks import Follower, seeds_of
from .methods import Method
from .sampler import Sampler
from .types import Conditioning, State

LOOPS = {  # the denoising loops that are followed, each with the pipeline whose forward pass it has
    "StableDiffusion3DenoiseStep": "StableDiffusion3Pipeline",
    "StableDiffusionXLDenoiseStep": "StableDiffusionXLPipeline",
}
PLAIN = {"guidance_rescale": 0.0, "use_original_formulation": False, "_start": 0.0, "_stop": 1.0}


class block(Follower, ModularPipelineBlocks):
    """A method that moves the text embedding, in the denoising loop of a modular pipeline.

        guide = dk.block(dk.DATE(reward, rho=0.5), pipe)
        images = guide.pipe(prompt="a red circle", output="images")

    pipe: a `ModularPipeline` of Stable Diffusion 3 or XL that has its components, which are frozen
    as by `dk.wrap`; memory: what `MemorySettings` takes. guide.pipe: the part of it from text to
    pictures, with the same components and this block first in its loop. The guider must be
    `ClassifierFreeGuidance`, with its guidance_scale as w; Stable Diffusion 3 guides where it is
    given a negative prompt, be it "". Raises TypeError for a pipeline, or ValueError for a method,
    a guider or an input, that this cannot serve.
    """

    def __init__(self, method: Method, pipe: Any, **memory: Any) -> None:
        if not isinstance(pipe, diffusers.ModularPipeline):
            raise TypeError(f"{type(pipe).__name__} is not a ModularPipeline: use dk.callback")
        ModularPipelineBlocks.__init__(self)
        Follower.__init__(self, method, **memory)
        blocks = pipe.blocks
        with contextlib.suppress(NotImplementedError):  # where there is one workflow alone
            blocks = blocks.get_workflow("text2image")
        loops = [part for part in _walk(blocks) if type(part).__name__ in LOOPS]
        if len(loops) != 1:
            what = f"{type(pipe).__name__} has {len(loops)} loops among {', '.join(LOOPS)}"
            raise TypeError(f"{what}, and dk.block goes into one")
        self._kind = getattr(diffusers, LOOPS[type(loops[0]).__name__])
        loops[0].sub_blocks.insert("datekit", self, 0)
        self.pipe = blocks.init_pipeline()
        kept = {name: getattr(pipe, name, None) for name in self.pipe.components}
        kept |= {spec.name: pipe.config[spec.name] for spec in blocks.expected_configs}
        self.pipe.update_components(**kept)

    def __deepcopy__(self, memo: dict) -> block:
        """Itself: diffusers copies blocks, and the pipeline's history is to be found here."""
        return self

    @property
    def inputs(self) -> list[InputParam]:
        """What it reads of the pipeline's call beside what the loop has."""
        optional = [InputParam(name) for name in ("generator", "max_sequence_length")]
        return [InputParam("prompt", required=True), *optional]

    def __call__(self, components: Any, loop: Any, i: int, t: Any) -> tuple[Any, Any]:
        """What the loop calls before each step."""
        cond = self.follow(i, loop.latents) if i else self.begin(self._start(components, loop))
        loop.prompt_embeds = cond.sequence.to(loop.prompt_embeds)
        loop.pooled_prompt_embeds = cond.pooled.to(loop.pooled_prompt_embeds)
        return components, loop

    def _start(self, components: Any, loop: Any) -> State:
        """The state before step 0, with what the pipeline encoded and drew."""
        parts = inspect.signature(self._kind).parameters.keys() & components.components.keys()
        pipe = self._kind(**{name: getattr(components, name) for name in parts})
        length, count = loop.max_sequence_length, len(loop.latents)
        backbone = wrap(pipe, **{} if length is None else {"text_length": length})
        told = {"num_steps": loop.num_inference_steps, "eta": getattr(loop, "eta", 0.0)}
        told |= {"guidance_scale": _w(backbone, components.guider)} | self._memory
        self.sampler = Sampler(backbone, self.method, solver="own", **told)
        if loop.timesteps.tolist() != self.sampler.solver_for(loop.latents.shape).timesteps:
            raise ValueError("dk.block follows the scheduler's own timesteps, from noise on")
        prompts = [loop.prompt] if isinstance(loop.prompt, str) else loop.prompt
        prompts = [prompt for prompt in prompts for _ in range(count // len(prompts))]
        seeds = seeds_of(loop.generator, count)
        state = self.sampler.init(prompts, seeds=seeds, latents=loop.latents)
        cond, uncond = _read(loop, "", state.cond), _read(loop, "negative_", state.uncond)
        return state.replace(xt=loop.latents, cond=cond, cond_org=cond, uncond=uncond)


def _read(loop: Any, sign: str, like: Conditioning) -> Conditioning | None:
    """An embedding as the loop has it, None where it has none; like: the same with its words."""
    sequence, pooled = (
        getattr(loop, f"{sign}{part}prompt_embeds", None) for part in ("", "pooled_")
    )
    if sequence is None:
        return None
    return like.replace(sequence=sequence.to(like.sequence), pooled=pooled.to(like.pooled))


def _walk(blocks: Any) -> Iterator[Any]:
    """Blocks and all that are in them."""
    yield blocks
    for part in blocks.sub_blocks.values():
        yield from _walk(part)


def _w(backbone: Backbone, guider: Any) -> float:
    """The sampler's w for a guider. Raises ValueError for one that does more than w says."""
    plain = type(guider).__name__ == "ClassifierFreeGuidance" and backbone.two_branches
    if not plain or any(getattr(guider, name) != value for name, value in PLAIN.items()):
        told = "ClassifierFreeGuidance with nothing but a guidance_scale"
        raise ValueError(f"dk.block follows {told} between two branches, not {guider}")
    return guider.guidance_scale if guider._enabled else 1.0
