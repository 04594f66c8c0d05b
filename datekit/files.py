"""Files that are there whole or not at all, and files of plain tensors."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import torch


def weights_path(part: str) -> Path:
    """Where the weights that ship under a name lie, such as "pipeline"."""
    return Path(__file__).parent / "shapes" / "weights" / part


def device_here(device: str) -> str:
    """The device that a file names, or the CPU where it is a GPU that this machine lacks."""
    return "cpu" if device == "cuda" and not torch.cuda.is_available() else device


def write_whole(path: Path, write: Callable[[Path], object], *, replace: bool = True) -> None:
    """Let `write` fill a file beside `path`, then rename it: no interruption leaves half a file.

    Without replace a file that is there, or that another process wrote meanwhile, stays.
    """
    path = Path(os.path.realpath(path))  # a link stays one
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        write(partial)
        if replace:
            os.replace(partial, path)
        else:
            with contextlib.suppress(FileExistsError):
                os.link(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def save_tensors(path: str | Path, kind: str, version: int, content: dict) -> Path:
    """Write plain containers of tensors to one file that says what it is; returns the path."""
    path, content = Path(path), {f"datekit_{kind}": version} | content
    write_whole(path, lambda partial: torch.save(content, partial))
    return path


def load_tensors(path: str | Path, kind: str, version: int) -> dict:
    """What `save_tensors` wrote, on the CPU. Raises ValueError for another kind or version."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        found = content[f"datekit_{kind}"]
    except FileNotFoundError:
        raise
    except Exception as error:
        what = f"no {kind} saved by datekit ({type(error).__name__})"
        raise ValueError(f"{path} is {what}") from error
    if found != version:
        raise ValueError(f"{path} has format {found}; this version of datekit reads {version}")
    return content
