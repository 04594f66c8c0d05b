"""Text-to-image models behind one protocol: `load` one by name, `wrap` a diffusers pipeline.

A new family is one file here: a `DiffusersBackbone` with its pipelines, a `Backbone` with models.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import torch

from ..errors import unknown
from ..files import weights_path
from ..registry import entries, import_all
from .base import Backbone, DiffusersBackbone, Recommended
from .gaussian import GaussianBackbone
from .kinds import family_of
from .text import quiet

__all__ = ["CLOSED_FORM", "SHIPPED", "Backbone", "DiffusersBackbone", "GaussianBackbone"]
__all__ += ["Recommended", "families", "load", "wrap"]

SHIPPED = {"shapes": "pipeline", "shapes-flow": "pipeline-flow"}  # each with its folder of weights
CLOSED_FORM = tuple(GaussianBackbone.models)


def families() -> list[type[Backbone]]:
    """The backbones that are there, those of this folder and those that others defined."""
    import_all(__name__, __path__)
    return list(entries("backbone").values())


def _by_name(what: str) -> dict[str, type[Backbone]]:
    """The families by their "pipelines" or "models"; what a subclass inherits is its base's."""
    known: dict[str, type[Backbone]] = {}
    for family in families():
        for name in vars(family).get(what, ()):
            known[name] = family
    return known


def wrap(pipe: Any, **settings: Any) -> Backbone:
    """A loaded diffusers pipeline as a `Backbone`, with its weights frozen and in eval mode.

    settings: name, recommended, tiny, and what the family takes besides, such as text_length.
    Subclasses and pipelines from picture to picture are taken where their forward pass is that of
    a family. Raises TypeError, with the reason, for a pipeline that no family handles.
    """
    if isinstance(pipe, (str, Path)):
        raise TypeError(f"wrap takes a loaded pipeline; dk.load({str(pipe)!r}) loads one")
    return family_of(pipe, _by_name("pipelines"))(pipe, **settings)


def load(
    source: str | Path,
    *,
    device: str | None = None,
    dtype: torch.dtype | str | None = None,
    **kwargs: Any,
) -> Backbone:
    """A backbone from the name of a shipped or closed-form model, a diffusers folder or a hub id.

    device: "cuda" where there is one, else "cpu", which the closed-form models prefer in any case;
    dtype: a torch dtype or its name, by default float32 whatever the checkpoint is stored in
    (float64 for a closed form). Further keywords are settings of the family, or go to
    `DiffusionPipeline.from_pretrained`. Raises ValueError for a name that is none of these.
    """
    from diffusers import DiffusionPipeline, __version__

    name, made = str(source), _by_name("models")
    dtype = _dtype(kwargs.pop("torch_dtype", None) if dtype is None else dtype)
    if name in made:
        settings = made[name].models[name] | kwargs
        backbone = made[name](**settings, source=name, device=device or "cpu", dtype=dtype)
        backbone.settings = kwargs
        return backbone
    folder = _folder(source, list(made))
    own = {setting for family in families() for setting in family.load_settings}
    settings = {key: value for key, value in kwargs.items() if key in own}
    others = {key: value for key, value in kwargs.items() if key not in own}
    with quiet() if name in SHIPPED else contextlib.nullcontext():
        try:
            parts = DiffusionPipeline.load_config(folder, **others)
            if name in SHIPPED and (odd := others.keys() - parts.keys()):
                raise TypeError(f"{name} has no setting {', '.join(sorted(odd))}")
            missing = [part for part, entry in parts.items() if entry == [None, None]]
            # Said to all parts, as transformers' own default is another than diffusers'.
            others["torch_dtype" if __version__.startswith("0.39.") else "dtype"] = (
                dtype or torch.float32
            )
            pipe = DiffusionPipeline.from_pretrained(folder, **dict.fromkeys(missing) | others)
        except OSError as error:
            raise OSError(f"{_hint(folder, str(error))}: {error}") from error
    pipe = pipe.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    backbone = wrap(pipe, name=name, **_advice(folder) | settings)
    backbone.settings = kwargs
    backbone.captions = name in SHIPPED
    if all(isinstance(value, (bool, int, float, str, type(None))) for value in kwargs.values()):
        backbone.source = name  # other objects no file of a run could name
    return backbone


def _dtype(asked: torch.dtype | str | None) -> torch.dtype | None:
    """The precision of a name. Raises ValueError for what is none."""
    dtype = getattr(torch, asked, None) if isinstance(asked, str) else asked
    if asked is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        return dtype
    raise ValueError(f"dtype must be a torch dtype such as torch.float16, got {asked!r}")


def _folder(source: str | Path, made: list[str]) -> Path | str:
    """Where the pipeline is: a folder, or a hub id. made: the names that need no weights."""
    if not isinstance(source, (str, Path)):
        told = f"a name, a folder or a hub id, got {type(source).__name__}"
        raise TypeError(f"load takes {told}; dk.wrap takes a loaded pipeline")
    name = str(source)
    if name in SHIPPED:
        return weights_path(SHIPPED[name])
    if name.endswith((".safetensors", ".ckpt", ".pt", ".gguf")) or Path(source).is_file():
        remedy = "dk.wrap(StableDiffusionPipeline.from_single_file(path))"
        raise ValueError(f"{name} is a single file, which diffusers reads: {remedy}")
    if not Path(source).is_dir() and (name.count("/") != 1 or name.startswith((".", "/", "~"))):
        more = " Or give a folder that exists, or a hub id 'owner/name'."
        raise unknown("model", name, [*SHIPPED, *made], more)
    return source


def _hint(folder: Path | str, error: str) -> str:
    """What may be wrong with a source from which diffusers could not load."""
    if "no file named" in error and "model_index.json" not in error:
        return f'{folder} lacks weights; for those in half precision alone, variant="fp16" asks'
    if not Path(folder).is_dir():
        return f"{folder} is no folder here, and as a hub id it did not load"
    return f"{folder} is not the folder of a whole pipeline of diffusers"


def _advice(folder: Path | str) -> dict:
    """What a folder that the shapes world's recipe made says of itself, as keywords of `wrap`."""
    known = _read(folder, "datekit.json")
    if not known:
        return {}
    del known["name"]
    length = {"text_length": known.pop("text_length")} if "text_length" in known else {}
    tiny = str(Path(folder).parent / "tiny")
    return length | {"recommended": Recommended(**known), "tiny": tiny}


def _read(folder: Path | str, name: str) -> dict:
    path = Path(folder) / name
    return json.loads(path.read_text()) if path.is_file() else {}
