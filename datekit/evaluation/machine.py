"""What a measurement was made on, and how files of results are written."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path

from datekit.files import write_whole


def facts(device: str = "cpu") -> dict:
    """Date, the processor or GPU that computed, threads and versions, for the head of a file of results."""
    import torch

    if device.startswith("cuda") and torch.cuda.is_available():
        hardware = torch.cuda.get_device_name(device)
    else:
        hardware = f"{os.cpu_count()} CPU cores ({_processor()}), {torch.get_num_threads()} threads"
    versions = {
        name: importlib.metadata.version(name)
        for name in ("torch", "diffusers", "transformers", "open_clip_torch")
    }
    return {
        "date": datetime.date.today().isoformat(),
        "hardware": hardware,
        "python": platform.python_version(),
        **versions,
    }


def write_json(path: str | Path, content: object) -> None:
    """Write a file of results, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1) + "\n"
    write_whole(path, lambda partial: partial.write_text(text))


def flags(settings: Mapping[str, object]) -> str:
    """Settings as options of a command line, --name value ..., for the command that a file of results names."""
    values = {
        name: " ".join(value) if isinstance(value, list) else value
        for name, value in settings.items()
    }
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in values.items())


def peak_mib() -> float:
    """The most resident memory that this process has had, MiB. Linux's `ru_maxrss` would count what a parent had before it, too."""
    status = Path("/proc/self/status")
    if status.is_file():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
