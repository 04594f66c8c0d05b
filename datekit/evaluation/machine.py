"""What a measurement was made on, and how files of results are written."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import torch

from ..files import write_whole

PACKAGES = ("torch", "diffusers", "transformers", "open_clip_torch")


def facts(device: str = "cpu") -> dict[str, str]:
    """Date, the processor or GPU that computes, threads and versions, for a file of results."""
    if device.startswith("cuda") and torch.cuda.is_available():
        hardware = torch.cuda.get_device_name(device)
    else:
        hardware = f"{os.cpu_count()} CPU cores ({_processor()}), {torch.get_num_threads()} threads"
    versions = {name: version(name) for name in PACKAGES}
    date = datetime.date.today().isoformat()
    return {"date": date, "hardware": hardware, "python": platform.python_version(), **versions}


def write_json(path: str | Path, content: object) -> None:
    """Write a file of results, whole or not at all; makes the folder that it is in."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1) + "\n"
    write_whole(path, lambda partial: partial.write_text(text))


def flags(settings: Mapping[str, object]) -> str:
    """Settings as options of a command line, "--name value ...": a list becomes several values."""
    words = []
    for name, value in settings.items():
        values = value if isinstance(value, list) else [value]
        words += [f"--{name.replace('_', '-')}", *map(str, values)]
    return " ".join(words)


def peak_mib() -> float:
    """The most memory that this process has held so far, in MiB.

    Linux's `ru_maxrss` is not asked, as it also counts what a parent process had before this one.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS


def _processor() -> str:
    cpus = Path("/proc/cpuinfo")
    for line in cpus.read_text().splitlines() if cpus.is_file() else ():
        if line.startswith("model name"):
            return line.split(":")[1].strip()
    return platform.processor() or platform.machine()
