"""Files that are there whole or not at all, and files of plain tensors."""

from __future__ import annotations

import contextlib
import os
import uuid
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.partial")  # a thread's own
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


def read_torch(path: str | Path, what: str) -> Any:
    """What `torch.save` wrote, on the CPU; nothing in it is executed. what: it should be.

    Raises ValueError for a file of another kind, a damaged one, and one that is packed: torch packs
    nothing, so a small file is no danger to memory.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as file:
                packed = any(member.compress_type for member in file.infolist())
                if packed or file.testzip():
                    raise ValueError("its parts are packed or damaged")
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{path} is no {what}: {type(error).__name__}: {error}") from error


def load_tensors(path: str | Path, kind: str, version: int) -> dict:
    """What `save_tensors` wrote, on the CPU. Raises ValueError for another kind or version."""
    content, what = read_torch(path, f"{kind} saved by datekit"), f"datekit_{kind}"
    found = content.get(what) if isinstance(content, dict) else None
    if not isinstance(found, int) or found != version:
        raise ValueError(
            f"{path} has {what} {found!r:.80}; this version of datekit reads {version}"
        )
    return content


@contextlib.contextmanager
def damaged(path: str | Path) -> Iterator[None]:
    """Inside, what a file that was changed leads to is a ValueError that names the file."""
    try:
        yield
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged or was changed: {error!r}") from error
