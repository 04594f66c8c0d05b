"""What an inversion found: the way from a picture to noise, where any number of edits start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..backbones import Backbone, wrap
from ..display import run_html
from ..files import load_tensors, save_tensors
from ..run import Run
from ..serialize import describe, pack, rebuild, unpack
from ..types import Record, State, to_pil
from .base import EditSampler, first_step, mask_extras, one_each, start_run, target_prompts
from .identity import fingerprint

FORMAT = 3  # of saved files
TENSORS = ("state", "path", "pixels")
PLAIN = ("kind", "guidance_scale", "skip")


@dataclass(frozen=True, eq=False, repr=False)
class Inversion(Record):
    """A picture inverted under its source prompt.

    `edit` starts edits of it, `reconstruct` the way back to the picture itself. kind: "ddim" or
    "ddpm"; sampler: with which it was made; state: the state before step 0 under the source prompt,
    with the step noise that a DDPM inversion solved for; path: (B, T + 1, C, h, w), xt before each
    step and, last, the picture's latent x0; pixels: (B, 3, H, W), the picture as the model took it;
    guidance_scale, skip: what edits take by default.
    """

    kind: str
    sampler: EditSampler
    state: State
    path: Tensor
    pixels: Tensor
    guidance_scale: float
    skip: float

    @property
    def latents(self) -> Tensor:
        """The picture's own latent x0, (B, C, h, w)."""
        return self.path[:, -1]

    @property
    def images(self) -> list:
        """The source as PIL images, as the model took it."""
        return to_pil(self.pixels)

    @property
    def source(self) -> tuple[str, ...]:
        """The source prompts, one a sample."""
        return self.state.prompts

    def edit(
        self,
        target: Sequence[str] | str,
        method=None,
        *,
        guidance_scale: float | None = None,
        skip: float | None = None,
        keep=None,
        negative_prompts=None,
        fit: str | None = None,
        **settings,
    ) -> Run:
        """A run from the inverted picture under a target prompt, paused before its first step.

        target: one prompt for all pictures, or one for each; method: any, `Fixed()` by default. It
        acts as in plain sampling and sees the steps' numbers of the whole schedule, so that
        `dk.every(5)` acts at steps 0, 5, ... from the first that is not skipped. guidance_scale: of
        uncond + w (cond - uncond). skip: how many of the noisiest steps are left out, a whole
        number or a share of them; more keeps more of the source. keep: a mask of what stays (white,
        1 or True), which is blended in after every step; fit: how it is brought to size, as for
        `as_images`. negative_prompts: those of the inversion by default. settings: of `dk.Sampler`,
        such as micro_batch. Raises ValueError for an empty target, and for a setting that an edit
        shares with its inversion (backbone, num_steps, solver, eta).
        """
        for name in self.sampler.fixed_by_the_past:
            if name in settings:
                raise ValueError(
                    f"an edit shares {name} with its inversion; invert the image again for another"
                )
        if method is not None:
            settings["method"] = method
        w = self.guidance_scale if guidance_scale is None else guidance_scale
        sampler, state = self.sampler.replace(guidance_scale=w, **settings), self.state
        fresh = sampler.init(
            one_each(target_prompts(target), len(state)),
            seeds=state.seeds,
            latents=self.latents,
            negative_prompts=negative_prompts,
        )
        start = first_step(self.skip if skip is None else skip, sampler.num_steps)
        return start_run(
            sampler,
            fresh,
            start,
            self.path[:, start],
            uncond=state.uncond if negative_prompts is None else fresh.uncond,
            noise=state.noise,
            extras=state.extras | mask_extras(keep, sampler, self.path, fit),
        )

    def reconstruct(self, skip: float = 0) -> Run:
        """The run under the source prompt and its guidance, back to the picture.

        "ddpm" reaches it exactly, "ddim" only as the steps grow.
        """
        start = first_step(skip, self.sampler.num_steps)
        return start_run(self.sampler, self.state, start, self.path[:, start])

    def save(self, path: str | Path) -> Path:
        """Write the inversion to one file, whole or not at all, and return its path."""
        content = {name: pack(getattr(self, name)) for name in TENSORS}
        content |= {name: getattr(self, name) for name in PLAIN}
        made_with = {
            "sampler": describe(self.sampler),
            "backbone": self.sampler.backbone.name,
            "fingerprint": fingerprint(self.sampler.backbone),
        }
        return save_tensors(path, "inversion", FORMAT, content | made_with)

    @classmethod
    def load(cls, path: str | Path, backbone=None) -> Inversion:
        """The inversion of a file.

        backbone: the one it was made with; it may be left out where that was loaded by name. Raises
        ValueError if the file is no inversion, or if the backbone is another one: of another class,
        precision or noise schedule, or with other weights.
        """
        content = load_tensors(path, "inversion", FORMAT)
        name, settings = content["backbone"], dict(content["sampler"])
        described = settings.pop("backbone")
        if backbone is None and "opaque" in described:
            raise ValueError(
                f"{path} was made with {name!r}, which cannot be loaded by a name: "
                "Inversion.load(path, backbone)"
            )
        backbone = rebuild(described) if backbone is None else backbone
        backbone = backbone if isinstance(backbone, Backbone) else wrap(backbone)
        if fingerprint(backbone) != content["fingerprint"]:
            raise ValueError(
                f"{path} was made with {name!r}, and {backbone.name!r} is another backbone: its "
                "class, precision, noise schedule or weights are others; load the one it was made "
                "with, or invert the image again"
            )
        settings = {key: rebuild(settings[key]) for key in settings.keys() - {"kind", "type"}}
        sampler = EditSampler(backbone, **settings)
        tensors = {key: unpack(content[key], backbone.device) for key in TENSORS}
        return cls(sampler=sampler, **tensors, **{key: content[key] for key in PLAIN})

    def __repr__(self) -> str:
        steps, name = self.sampler.num_steps, self.sampler.backbone.name
        return f"<Inversion of {len(self.state)} ({self.kind}, {steps} steps, {name})>"

    def _repr_html_(self) -> str:
        return run_html(self.reconstruct())
