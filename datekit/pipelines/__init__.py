"""Folders for `DiffusionPipeline.from_pretrained`: a pipeline whose call takes a method besides.

    pipe = DiffusionPipeline.from_pretrained(
        model, custom_pipeline=dk.pipelines.SDXL, trust_remote_code=True
    )
    images = pipe("a red circle", method=dk.DATE(reward, rho=0.5)).images

The code that is to be trusted is a file of this package. `dk.wrap` takes these pipelines too.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from ..callbacks import callback

_FOLDERS = ("flux", "sd", "sd3", "sdxl", "z_image")
FLUX, SD, SD3, SDXL, Z_IMAGE = (str(Path(__file__).parent / name) for name in _FOLDERS)


def guided(kind: type) -> type:
    """A subclass of a pipeline of diffusers whose call takes `method`, and `memory` as a dict.

    Each call with a method leaves its `dk.callback`, with the history, as `pipe.guide`.
    """

    @functools.wraps(kind.__call__)
    def call(
        self: Any, *args: Any, method: Any = None, memory: dict | None = None, **kwargs: Any
    ) -> Any:
        if method is None:
            return kind.__call__(self, *args, **kwargs)
        self.guide = callback(method, self, **memory or {})
        return kind.__call__(self, **self.guide.arguments(*args, **kwargs))

    return type(f"Date{kind.__name__}", (kind,), {"__call__": call, "__doc__": kind.__doc__})
