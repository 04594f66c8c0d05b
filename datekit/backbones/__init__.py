"""Text-to-image models behind one protocol: `load` by name, folder or hub id; `wrap` a diffusers pipeline.

A new family is one file with a `DiffusersBackbone` and one row in `FAMILIES`.
"""

from __future__ import annotations

import importlib
import json
from importlib import resources
from pathlib import Path

from ..errors import unknown
from .base import Backbone, DiffusersBackbone, Recommended
from .gaussian import GaussianBackbone

FAMILIES = {
    "StableDiffusionPipeline": ("unet", "UNetBackbone"),
    "StableDiffusionXLPipeline": ("sdxl", "SDXLBackbone"),
    "PixArtAlphaPipeline": ("pixart", "PixArtBackbone"),
    "PixArtSigmaPipeline": ("pixart", "PixArtBackbone"),
    "StableDiffusion3Pipeline": ("sd3", "SD3Backbone"),
    "FluxPipeline": ("flux", "FluxBackbone"),
}
SHIPPED = {"shapes": "pipeline", "shapes-flow": "pipeline-flow"}
SETTINGS = (
    "text_length",
    "distilled_guidance",
    "sample_size",
)  # of families, beside what a pipeline is loaded with
CLOSED_FORM = {"gaussian": 1, "gaussian-mixture": 4}  # components

__all__ = [
    "CLOSED_FORM",
    "FAMILIES",
    "SHIPPED",
    "Backbone",
    "DiffusersBackbone",
    "GaussianBackbone",
    "Recommended",
    "load",
    "wrap",
]


def wrap(
    pipe,
    *,
    name: str | None = None,
    source: str | None = None,
    recommended: Recommended | None = None,
    **settings,
) -> Backbone:
    """A loaded diffusers pipeline as a `Backbone`; its weights are frozen and its modules put in eval mode.

    settings: what the family knows besides: text_length (PixArt, SD3, FLUX), distilled_guidance and sample_size (FLUX). Raises
    TypeError for a pipeline class that no family handles, naming those that work.
    """
    kind = type(pipe).__name__
    if kind not in FAMILIES:
        raise TypeError(
            f"{kind} is not a pipeline datekit can sample. Known: {', '.join(FAMILIES)}. For another model, "
            "subclass datekit.backbones.Backbone (encode, predict, decode, latent_shape) and pass it to dk.Sampler."
        )
    module, cls = FAMILIES[kind]
    family = getattr(importlib.import_module(f".{module}", __package__), cls)
    return family(pipe, name=name, source=source, recommended=recommended, **settings)


def load(source: str | Path, *, device: str | None = None, dtype=None, **kwargs) -> Backbone:
    """A backbone from the name of a shipped or closed-form model, a folder in diffusers' layout, or a hub id.

    device: "cuda" where there is one, else "cpu", which the closed-form models prefer in any case; dtype: a torch dtype, by
    default float32 whatever precision the checkpoint is stored in (float64 for a closed form); further keywords are `wrap`'s settings,
    or go to `DiffusionPipeline.from_pretrained`. Raises ValueError for a name that is none of these.
    """
    import torch
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging
    from transformers.utils import logging as transformers_logging

    name = str(source)
    if name in CLOSED_FORM:
        closed = GaussianBackbone(
            CLOSED_FORM[name], name=name, source=name, device=device or "cpu", dtype=dtype, **kwargs
        )
        closed.settings = kwargs
        return closed
    shipped = name in SHIPPED
    folder = shipped_folder(SHIPPED[name]) if shipped else Path(source)
    if shipped and not folder.is_dir():
        raise FileNotFoundError(
            f"the weights of {name!r} are missing from this installation ({folder}); install it again"
        )
    if not folder.is_dir():
        if name.count("/") != 1 or name.startswith((".", "/", "~")):
            raise unknown(
                "model",
                name,
                [*SHIPPED, *CLOSED_FORM],
                " Or give a folder that exists, or a hub id 'owner/name'.",
            )
        folder = name
    asked = dict(kwargs)
    settings = {key: kwargs.pop(key) for key in SETTINGS if key in kwargs}
    if (
        dtype is not None or "torch_dtype" not in kwargs
    ):  # said to all parts, as transformers' own default is another than diffusers'
        kwargs["dtype"] = torch.float32 if dtype is None else dtype
    shown = [log for log in (logging, transformers_logging) if log.is_progress_bar_enabled()]
    if shipped:
        for log in shown:
            log.disable_progress_bar()
    try:
        pipe = DiffusionPipeline.from_pretrained(folder, **(_absent(folder) | kwargs))
    finally:
        for log in shown:
            log.enable_progress_bar()
    pipe = pipe.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    backbone = wrap(pipe, name=name, source=name, **(_beside(folder) | settings))
    if all(value is None or isinstance(value, (bool, int, float, str)) for value in asked.values()):
        backbone.settings = asked
    else:
        backbone.source = None  # made with objects that no file of a run can name
    return backbone


def shipped_folder(part: str) -> Path:
    """The folder of weights that came with the package."""
    return Path(str(resources.files("datekit"))) / "shapes" / "weights" / part


def _absent(folder: Path | str) -> dict:
    """None for each part that a folder was saved without, as `from_pretrained` wants it said: Stable Diffusion 3 may have no T5."""
    path = Path(folder) / "model_index.json"
    index = json.loads(path.read_text()) if path.is_file() else {}
    return {part: None for part, entry in index.items() if entry == [None, None]}


def _beside(folder: Path | str) -> dict:
    """What a folder's datekit.json recommends, as keywords of `wrap`."""
    path = Path(folder) / "datekit.json"
    if not path.is_file():
        return {}
    known = json.loads(path.read_text())
    advice = Recommended(
        **{key: known[key] for key in ("num_steps", "guidance_scale", "solver") if key in known}
    )
    return {"recommended": advice} | {key: known[key] for key in ("text_length",) if key in known}
