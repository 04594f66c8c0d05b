"""What an inversion found: the way from the image to noise, from which any number of edits start."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from ..backbones import Backbone, wrap
from ..files import load_tensors, save_tensors
from ..run import Run
from ..serialize import describe, rebuild
from ..types import Record, State, pack, to_pil, unpack
from . import identity
from .base import EditSampler, check_target, extras_of, first_step

_FORMAT = 2  # of saved files


@dataclass(frozen=True, eq=False, repr=False)
class Inversion(Record):
    """An image inverted under its source prompt; `edit` starts edits of it, `reconstruct` the way back to the image itself.

    kind: "ddim" or "ddpm"; sampler: with which it was made (backbone, steps, solver, eta, source guidance); state: (B) the state
    before step 0 under the source prompt, with the step noise that a DDPM inversion solved for; path: (B, T + 1, C, h, w), xt before
    each step and, last, the image's latent x0; pixels: (B, 3, H, W), the image as the model took it; witness: (B, C, h, w), the
    network's guided output in the middle of the path, by which `load` tells the backbone again; guidance_scale: what edits
    take by default; skip: the share of steps that edits leave out by default; extras: tensors that an edit's state has to carry.
    """

    kind: str
    sampler: EditSampler
    state: State
    path: Tensor
    pixels: Tensor
    witness: Tensor
    guidance_scale: float
    skip: float
    extras: dict[str, Tensor] = field(default_factory=dict)

    @property
    def latents(self) -> Tensor:
        """The image's own latent x0, (B, C, h, w)."""
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
        target,
        method=None,
        *,
        guidance_scale: float | None = None,
        skip: float | None = None,
        keep=None,
        negative_prompts=None,
        fit: str | None = None,
        **settings,
    ) -> Run:
        """A run that starts at the inverted image and goes on under a target prompt, paused before its first step.

        target: a string or B strings; method: any, `Fixed()` by default, acts on the target steps as in plain sampling and sees the
        steps' numbers of the whole schedule, so that `dk.every(5)` acts at 0, 5, ... from the first that is not skipped; guidance_scale:
        of uncond + w (cond - uncond); skip: how many of the noisiest steps are left out, a number or a share below 1: more keeps
        more of the source; keep: a mask of what stays (white, 1 or True), blended in latent space after every step; fit: how it
        is brought to size (`as_images`); settings: further ones of `dk.Sampler` (micro_batch, checkpointing). Raises ValueError for an
        empty target, and for a backbone, num_steps, solver or eta other than the inversion's.
        """
        target = check_target(target)
        self._check(settings)
        w = self.guidance_scale if guidance_scale is None else guidance_scale
        sampler = self.sampler.replace(
            guidance_scale=w, **({} if method is None else {"method": method}), **settings
        )
        start = first_step(self.skip if skip is None else skip, sampler.num_steps)
        state = self.state
        if not isinstance(target, str) and len(target) != len(state):
            raise ValueError(
                f"{len(state)} inverted images take {len(state)} target prompts, or one for all as a plain string, "
                f"got {len(target)}"
            )
        negatives = {} if negative_prompts is None else {"negative_prompts": negative_prompts}
        fresh = sampler.init(target, seeds=state.seeds, latents=self.latents, **negatives)
        uncond = state.uncond if negative_prompts is None else fresh.uncond
        return Run(
            sampler,
            fresh.replace(
                xt=self.path[:, start],
                i=start,
                t=sampler.solver_for(self.path.shape).timesteps[start],
                uncond=uncond,
                noise=state.noise,
                extras=self.extras | extras_of(keep, sampler, self.path, fit),
            ),
        )

    def reconstruct(self, skip: float = 0) -> Run:
        """The run under the source prompt and its guidance: back to the image exactly for "ddpm"; for "ddim" only as the steps grow."""
        start = first_step(skip, self.sampler.num_steps)
        return Run(
            self.sampler,
            self.state.replace(
                xt=self.path[:, start],
                i=start,
                t=self.sampler.solver_for(self.path.shape).timesteps[start],
                extras=self.extras,
            ),
        )

    def _check(self, settings: dict) -> None:
        for name in self.sampler.fixed_by_the_past:
            if name in settings:
                mine = {
                    "backbone": self.sampler.backbone,
                    "solver": self.sampler.solver.name,
                    "eta": self.sampler.solver.eta,
                    "num_steps": self.sampler.num_steps,
                }[name]
                if settings.pop(name) != mine:
                    raise ValueError(
                        f"this inversion was made with {name} = {mine!r}, and its edits share it; invert the image again"
                    )

    def save(self, path: str | Path) -> Path:
        """Write the inversion to one file (torch format, plain tensors); atomically. Returns the path."""
        tensors = {
            name: pack(getattr(self, name))
            for name in ("state", "path", "pixels", "witness", "extras")
        }
        plain = {name: getattr(self, name) for name in ("kind", "guidance_scale", "skip")}
        made = {
            "backbone": identity.settings(self.sampler.backbone),
            "schedule": identity.schedule(self.sampler, self.path.shape),
            "device": self.sampler.backbone.device.type,
        }
        return save_tensors(
            path, "inversion", _FORMAT, {"sampler": describe(self.sampler)} | tensors | plain | made
        )

    @classmethod
    def load(cls, path: str | Path, backbone=None, *, num_steps: int | None = None) -> Inversion:
        """A saved inversion.

        backbone: the one it was made with; may be left out where that was loaded by name; num_steps: the steps that the edits are to
        have, to be checked. Raises ValueError if the file is no inversion, was made with another number of steps, or with another
        backbone: another name, class, precision, prediction type or noise schedule, or one whose text encoder, autoencoder or network
        answers differently, which a pass of each tells.
        """
        content = load_tensors(path, "inversion", _FORMAT)
        spec, made = content["sampler"], content["backbone"]
        if num_steps not in (None, spec["num_steps"]):
            raise ValueError(
                f"{path} was inverted with {spec['num_steps']} steps, not {num_steps}; its edits share them: "
                "invert the image again for another number"
            )
        if backbone is None and made["source"] is None:
            raise ValueError(
                f"{path} was made with {made['name']!r}, which cannot be loaded by a name: Inversion.load(path, backbone)"
            )
        backbone = (
            rebuild(spec).backbone
            if backbone is None
            else backbone
            if isinstance(backbone, Backbone)
            else wrap(backbone)
        )

        def check(difference: str) -> None:
            if difference:
                what = f"{path} is a {content['kind'].upper()} inversion made with {made['name']!r}, and {backbone.name!r} is another backbone"
                raise ValueError(
                    f"{what}: {difference}; load the one it was made with, or invert the image again"
                )

        check(identity.other_settings(made, identity.settings(backbone)))
        sampler = EditSampler(
            backbone,
            solver=spec["solver"],
            eta=spec["eta"],
            **{name: spec[name] for name in EditSampler.options},
        )
        tensors = {
            name: unpack(content[name], backbone.device)
            for name in ("state", "path", "pixels", "witness", "extras")
        }
        found = cls(
            sampler=sampler,
            **tensors,
            **{name: content[name] for name in ("kind", "guidance_scale", "skip")},
        )
        check(
            identity.other_schedule(
                content["schedule"], identity.schedule(sampler, found.path.shape)
            )
        )
        check(identity.other_answers(found, content["device"]))
        return found

    def __repr__(self) -> str:
        return f"<Inversion of {len(self.state)} ({self.kind}, {self.sampler.num_steps} steps, {self.sampler.backbone.name})>"

    def _repr_html_(self) -> str:
        from ..display import run_html

        return run_html(self.reconstruct())
