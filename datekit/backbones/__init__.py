"""Text-to-image models behind one protocol: `load` one by name, `wrap` a diffusers pipeline.

A new family is one file of this folder with a `DiffusersBackbone` that names its pipelines, or
with a `Backbone` that names its models.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import torch

from ..errors import unknown
from ..registry import entries, import_all
from .base import Backbone, DiffusersBackbone, Recommended
from .gaussian import GaussianBackbone

SHIPPED = {"shapes": "pipeline", "shapes-flow": "pipeline-flow"}  # each with its folder of weights
CLOSED_FORM = tuple(GaussianBackbone.models)

__all__ = [
    "CLOSED_FORM",
    "SHIPPED",
    "Backbone",
    "DiffusersBackbone",
    "GaussianBackbone",
    "Recommended",
    "families",
    "load",
    "wrap",
]


def families() -> list[type[Backbone]]:
    """The backbones that are there, those of this folder and those that others defined."""
    import_all(__name__, __path__)
    return list(entries("backbone").values())


def named_by(family: type[Backbone], what: str):
    """The "pipelines" or "models" that a family names itself; a subclass does not inherit them."""
    return vars(family).get(what, ())


def wrap(
    pipe,
    *,
    name: str | None = None,
    source: str | None = None,
    recommended: Recommended | None = None,
    **settings,
) -> Backbone:
    """A loaded diffusers pipeline as a `Backbone`, with its weights frozen and in eval mode.

    settings: what the family takes besides, such as text_length. Raises TypeError for a pipeline
    that no family handles, naming those that work.
    """
    kind = type(pipe).__name__
    known = {}
    for family in families():
        known |= dict.fromkeys(named_by(family, "pipelines"), family)
    if kind not in known:
        raise TypeError(
            f"{kind} is not a pipeline datekit can sample. Known: {', '.join(known)}. For another "
            "model, pass dk.Sampler a subclass of datekit.backbones.Backbone."
        )
    return known[kind](pipe, name=name, source=source, recommended=recommended, **settings)


def load(source: str | Path, *, device: str | None = None, dtype=None, **kwargs) -> Backbone:
    """A backbone from the name of a shipped or closed-form model, a diffusers folder or a hub id.

    device: "cuda" where there is one, else "cpu", which the closed-form models prefer in any case;
    dtype: a torch dtype, by default float32 whatever the checkpoint is stored in (float64 for a
    closed form). Further keywords are settings of the family, or go to
    `DiffusionPipeline.from_pretrained`. Raises ValueError for a name that is none of these.
    """
    from diffusers import DiffusionPipeline

    name = str(source)
    made = {model: family for family in families() for model in named_by(family, "models")}
    if name in made:
        family = made[name]
        where = {"name": name, "source": name, "device": device or "cpu", "dtype": dtype}
        backbone = family(**family.models[name], **where, **kwargs)
        backbone.settings = kwargs
        return backbone
    folder = _folder(source, list(made))
    own = {setting for family in families() for setting in family.load_settings}
    settings = {key: value for key, value in kwargs.items() if key in own}
    others = {key: value for key, value in kwargs.items() if key not in own}
    if dtype is not None or "torch_dtype" not in others:
        # Said to all parts, as transformers' own default is another than diffusers'.
        others["dtype"] = torch.float32 if dtype is None else dtype
    with _no_progress() if name in SHIPPED else contextlib.nullcontext():
        pipe = DiffusionPipeline.from_pretrained(folder, **(_missing_parts(folder) | others))
    pipe = pipe.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    backbone = wrap(pipe, name=name, source=name, **(_advice(folder) | settings))
    plain = (bool, int, float, str, type(None))
    if all(isinstance(value, plain) for value in kwargs.values()):
        backbone.settings = kwargs
    else:
        backbone.source = None  # made with objects that no file of a run can name
    return backbone


def shipped_folder(part: str) -> Path:
    """The folder of weights that came with the package."""
    return Path(str(resources.files("datekit"))) / "shapes" / "weights" / part


def _folder(source: str | Path, made: list[str]) -> Path | str:
    """Where the pipeline is: a folder, or a hub id. made: the names that need no weights."""
    name = str(source)
    if name in SHIPPED:
        return shipped_folder(SHIPPED[name])
    if Path(source).is_dir():
        return Path(source)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        more = " Or give a folder that exists, or a hub id 'owner/name'."
        raise unknown("model", name, [*SHIPPED, *made], more)
    return name


@contextlib.contextmanager
def _no_progress() -> Iterator[None]:
    """Inside, diffusers and transformers show no progress bars."""
    from diffusers.utils import logging
    from transformers.utils import logging as transformers_logging

    shown = [log for log in (logging, transformers_logging) if log.is_progress_bar_enabled()]
    try:
        for log in shown:
            log.disable_progress_bar()
        yield
    finally:
        for log in shown:
            log.enable_progress_bar()


def _missing_parts(folder: Path | str) -> dict:
    """None for each part that a folder was saved without, as `from_pretrained` wants it said.

    Stable Diffusion 3 may have no T5.
    """
    index = _read(Path(folder) / "model_index.json")
    return {part: None for part, entry in index.items() if entry == [None, None]}


def _advice(folder: Path | str) -> dict:
    """What a folder's datekit.json recommends, as keywords of `wrap`."""
    known = _read(Path(folder) / "datekit.json")
    names = ("num_steps", "guidance_scale", "solver")
    advice = {key: known[key] for key in names if key in known}
    told = {"recommended": Recommended(**advice)} if advice else {}
    if "text_length" in known:
        told["text_length"] = known["text_length"]
    return told


def _read(path: Path) -> dict:
    return json.loads(path.read_text()) if path.is_file() else {}
