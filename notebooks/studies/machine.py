"""What a measurement was made on."""

from __future__ import annotations

import datetime
import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch

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
