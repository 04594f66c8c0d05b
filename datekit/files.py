"""Files that are there whole or not at all, and files of plain tensors."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def shipped(part: str) -> Path:
    """The folder of weights that ship with the package under a name, such as "pipeline"."""
    return Path(__file__).parent / "shapes" / "weights" / part


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, then rename it:

    an interruption leaves the old file or the new one, whoever else writes it.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def save_tensors(path: str | Path, kind: str, version: int, content: dict) -> Path:
    """Write plain containers of tensors to one file in torch's format, marked with what they are;
    atomically. Returns the path.
    """
    import torch

    path = Path(path)
    write_whole(path, lambda partial: torch.save({f"datekit_{kind}": version} | content, partial))
    return path


def load_tensors(path: str | Path, kind: str, version: int) -> dict:
    """What `save_tensors` wrote, on the CPU.

    Raises ValueError for a file of another kind or version.
    """
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        found = content[f"datekit_{kind}"]
    except FileNotFoundError:
        raise
    except Exception as error:
        a = "an" if kind[0] in "aeiou" else "a"
        raise ValueError(
            f"{path} is not {a} {kind} saved by datekit ({type(error).__name__})"
        ) from error
    if found != version:
        raise ValueError(
            f"{path} was saved in format {found}; this version of datekit reads format {version}"
        )
    return content
