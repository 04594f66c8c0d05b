"""The switch of the notebooks:

a large model where it can be had, else what ships with the package.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datekit.errors import DatekitError, unknown


def load_large(
    model: str, lines: Mapping[str, Callable[[], Any]], *, small: Sequence[str] = ("shapes",)
) -> Any | None:
    """What `lines[model]()` loads; None for a model of `small`, and where a large one cannot be
    had.

    One printed sentence then says what is missing: the GPU, the weights of model or reward, a
    library, memory. Raises ValueError for a name that is in neither list.
    """
    import torch

    if model not in (*lines, *small):
        raise unknown("model", model, [*lines, *small])
    if model in small:
        return None
    missing = "there is no GPU here"
    if torch.cuda.is_available():
        try:
            return lines[model]()
        except (
            OSError,
            ImportError,
            RuntimeError,
            DatekitError,
        ) as error:  # RuntimeError: open_clip's, and memory of the GPU
            missing = str(error).strip().splitlines()[0][:200].rstrip(".") or type(error).__name__
    print(f"not {model} but what ships with the package: {missing}")
    return None
