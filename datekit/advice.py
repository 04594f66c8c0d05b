"""What to do about memory: settings that fit, chosen before a run on a CPU, and the error that says what to turn."""

from __future__ import annotations

import torch

from .backbones import DiffusersBackbone
from .estimates import GIB, Walk, conditionings, prepare
from .memory import Limits, free_bytes
from .methods import Method

ROOM = 8192  # bytes that an updated step takes for a byte of float32 picture: 500 (shapes) to 4,800 (FLUX), so more than it will be


def advice(
    backbone,
    method: Method,
    batch: int,
    *,
    height: int | None = None,
    width: int | None = None,
    shape: tuple[int, ...] | None = None,
    guidance_scale: float | None = None,
    micro_batch: int | None = None,
    decode_batch: int | None = None,
    checkpointing: bool = False,
) -> str:
    """What to turn when memory ran out: the options in the order of their price, each with the memory it would need beside the weights.

    shape: of a latent, (C, h, w), instead of height and width. What is in force already is not offered.
    """
    w = backbone.recommended.guidance_scale if guidance_scale is None else guidance_scale
    rewards, shape = method.rewards, shape or backbone.latent_shape(height, width)
    conds = {n: conditionings(backbone, n, w) for n in {batch, 1}}
    needs: dict[str, int] = {}
    if not rewards:
        walk = Walk(backbone, None, shape, w, batch, None, False)
        needs = {
            f"batch {n}": walk.counted(lambda n=n: walk.plain(conds[n], n))[0]
            for n in dict.fromkeys((batch, 1))
        }
    else:
        for reward in rewards.values():
            prepare(reward, backbone)
        rows = min(micro_batch or batch, batch)
        keep = "condition" in rewards and (
            method.keep_graph or (method.keep_graph is None and not checkpointing)
        )  # as `Denoiser` decides
        now = {
            "count": batch,
            "rows": rows,
            "pictures": min(decode_batch or rows, rows),
            "keep": keep,
            "recompute": checkpointing,
        }
        for words, change in (("as it is", {}), ("decode_batch=1", {"pictures": 1}), ("keep_graph=False in dk.DATE", {"keep": False}),
                              ("micro_batch=1", {"rows": 1}), ("checkpointing=True", {"recompute": True}),
                              ("one prompt at a time", {"count": 1})):  # fmt: skip
            if needs and now | change == now:
                continue
            now |= change
            walk = Walk(
                backbone, method.reward, shape, w, now["rows"], now["pictures"], now["recompute"]
            )
            needs[f"that and {words}" if len(needs) > 1 else words] = walk.counted(
                lambda walk=walk, n=now["count"], k=now["keep"]: walk.acted(rewards, conds[n], n, k)
            )[0]
    return "; ".join(f"{words}: {need / GIB:.2f} GiB" for words, need in needs.items())


def lowered(limits: Limits, backbone, method: Method, shape: tuple[int, ...], w: float) -> Limits:
    """Limits lowered until a step on latents of a shape (B, C, h, w) fits into free memory, or nothing is left to lower.

    The step is walked through only where it might not fit: where pictures take more than 1/`ROOM` of what is free.
    """
    batch, free = shape[0], free_bytes(backbone.device)
    if not isinstance(backbone, DiffusersBackbone):
        return limits
    height, width = (side * backbone.pipe.vae_scale_factor for side in shape[-2:])
    if ROOM * batch * 3 * 4 * height * width <= free:
        return limits
    try:
        for reward in method.rewards.values():
            prepare(reward, backbone)
        conds = conditionings(backbone, batch, w)
        keep = method.keep_graph is True
        while True:
            walk = Walk(
                backbone,
                method.reward,
                shape[1:],
                w,
                limits.micro_batch or batch,
                limits.decode_batch,
                limits.checkpointing,
            )
            if walk.counted(lambda walk=walk: walk.acted(method.rewards, conds, batch, keep))[
                0
            ] <= free or not limits.lower(batch):
                return limits
    except ValueError:  # a reward that cannot be walked through: as it was asked for
        return limits


def told(
    error: BaseException, backbone, method: Method, batch: int, **settings
) -> torch.OutOfMemoryError:
    """The error of a device that ran out of memory, with `advice`; settings as there."""
    try:
        text = advice(backbone, method, batch, **settings)
    except (
        ValueError,
        RuntimeError,
    ) as unknown:  # nothing left even for the prompt's encoding, or a reward that cannot be walked through
        first = str(unknown).splitlines()[0][:200]
        text = f"not known ({first}); try decode_batch=1, keep_graph=False, micro_batch=1, checkpointing=True, in this order"
    free = free_bytes(backbone.device) / GIB
    found = torch.OutOfMemoryError(
        f"a batch of {batch} does not fit: {free:.2f} GiB are free beside what is loaded, and a step needs, {text}. "
        "Smaller pictures (height, width) and half precision (dtype) need less, too"
    )
    found.told = True
    return found
