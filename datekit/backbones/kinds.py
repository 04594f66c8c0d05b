"""Which family takes a pipeline: that whose forward pass it has, whatever its class is called."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Mapping
from typing import Any

# What a subclass may change: what the families ask the pipeline itself, and what moves no latent.
FREE = {"encode_prompt", "check_inputs", "run_safety_checker", "interrupt", "num_timesteps"}


def family_of(pipe: Any, known: Mapping[str, type]) -> type:
    """The family of a pipeline. known: the families by the names of the pipelines that they wrap.

    A subclass belongs to its base's family, a pipeline from picture to picture to that of the same
    model. Raises TypeError for one whose forward pass is another, and ValueError for a network into
    which something is loaded that makes it another, with the reason.
    """
    import diffusers

    kind, siblings = type(pipe), None
    for base in kind.__mro__:
        name = base.__name__
        if name not in known:
            siblings = _siblings() if siblings is None else siblings
            name = siblings.get(name, "")
        if name in known:
            own = getattr(diffusers, base.__name__, base)
            if changed := _changed(kind, own):
                why = f"changes {', '.join(changed)} of {own.__name__}"
                raise TypeError(_refusal(kind.__name__, why, name))
            unet = getattr(pipe, "unet", None)
            _check_plain(getattr(pipe, "transformer", None) if unet is None else unet)
            return known[name]
    raise TypeError(_unrelated(pipe, known))


def _check_plain(network: Any) -> None:
    """Raise ValueError where a network computes from more than a latent and a text."""
    if hasattr(network, "_orig_mod"):
        told = "torch.compile(network) hides the network; compile it in its place"
        raise ValueError(f"{told}, by network.compile() or by dk.wrap(pipe).tune(compile=True)")
    adapters = [getattr(network, name, None) for name in ("encoder_hid_proj", "image_proj")]
    if any(adapter is not None for adapter in adapters):
        raise ValueError("an IP-Adapter is loaded; take it off with pipe.unload_ip_adapter()")
    processors = getattr(network, "attn_processors", {}).values()
    if any(type(processor).__name__.startswith("PAG") for processor in processors):
        active = "perturbed-attention guidance (PAG) is active in the network"
        raise ValueError(f"{active}; put its own processors back with set_attn_processor")
    config = getattr(network, "config", None)
    taken, given = (getattr(config, f"{way}_channels", None) for way in ("in", "out"))
    if (taken or 0) > (given or math.inf) and taken != 4 * given:  # 4: Qwen-Image packs cells
        raise ValueError("this network takes more than a latent, as for inpainting")


def _siblings() -> dict[str, str]:
    """From pipelines that take pictures to that from text of the same model, as diffusers says."""
    from diffusers.pipelines import auto_pipeline

    found = {}
    tables = (
        auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING,
        auto_pipeline.AUTO_INPAINT_PIPELINES_MAPPING,
    )
    for model, plain in auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING.items():
        for table in tables:
            if model in table:
                found[table[model].__name__] = plain.__name__
    return found


def _changed(kind: type, own: type) -> list[str]:
    """What a class changed of the forward pass of diffusers' own: `__call__` and what it uses.

    What wraps diffusers' own, by `functools.wraps`, is not changed.
    """
    if kind is own:
        return []
    used = {"__call__", *inspect.unwrap(own.__call__).__code__.co_names} - FREE
    names = [name for name in vars(own) if name in used]
    unwrapped = [(n, *(inspect.unwrap(getattr(c, n, None)) for c in (kind, own))) for n in names]
    return [name for name, ours, theirs in unwrapped if ours is not theirs]


def _unrelated(pipe: Any, known: Mapping[str, type]) -> str:
    """Why no family takes a pipeline, and which one would take its parts."""
    kind, parts = type(pipe).__name__, getattr(pipe, "components", {})
    fitting = [name for name in known if _fits(name, parts)]
    for name in difflib.get_close_matches(kind, fitting, 1, cutoff=0):
        more = sorted(set(parts) - set(_signature(name)))
        why = f"has more in its forward pass: {', '.join(more)}" if more else "has its own __call__"
        return _refusal(kind, why, name)
    return f"{kind} is not a pipeline among {', '.join(known)}; other models need a Backbone"


def _refusal(kind: str, why: str, plain: str) -> str:
    remedy = f"dk.wrap({plain}.from_pipe(pipe, torch_dtype=pipe.dtype))"
    return f"{kind} {why}, which is not followed here; {remedy} samples its network without it"


def _signature(name: str) -> Mapping[str, inspect.Parameter]:
    """What one of diffusers' pipelines is made of; empty for a name that is none."""
    import diffusers

    cls = getattr(diffusers, name, None)
    return inspect.signature(cls).parameters if cls else {}


def _fits(name: str, parts: Mapping[str, Any]) -> bool:
    """Whether parts have the names, and the models the kinds, of a pipeline of diffusers."""
    import diffusers

    if not _signature(name):
        return False
    cls = getattr(diffusers, name)
    kinds, optional = cls._get_signature_types(), set(cls._optional_components)
    needed = [p.name for p in _signature(name).values() if p.default is p.empty]
    if not set(needed) - optional <= set(parts):
        return False
    models = [n for n in needed if isinstance(parts.get(n), diffusers.ModelMixin)]
    return all(type(parts[n]) in kinds[n] for n in models)
