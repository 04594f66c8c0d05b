"""What a measurement was made on, and how files of results are written."""

from __future__ import annotations

import datetime
import json
import os
import platform
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
        cpus, processor = Path("/proc/cpuinfo"), platform.processor() or platform.machine()
        for line in cpus.read_text().splitlines() if cpus.is_file() else ():
            if line.startswith("model name"):
                processor = line.split(":")[1].strip()
        hardware = f"{os.cpu_count()} CPU cores ({processor}), {torch.get_num_threads()} threads"
    versions = {name: version(name) for name in PACKAGES}
    date = datetime.date.today().isoformat()
    return {"date": date, "hardware": hardware, "python": platform.python_version(), **versions}


def write_json(path: str | Path, content: object) -> None:
    """Write a file of results, whole or not at all; makes the folder that it is in."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1) + "\n"
    write_whole(path, lambda partial: partial.write_text(text))
