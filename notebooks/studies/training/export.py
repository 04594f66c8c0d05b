"""Writes a trained model as a pipeline folder in diffusers' own layout."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from studies.training import tokenizer
from studies.training.loop import write_atomically

FOLDERS = {"denoiser": "pipeline", "flow": "pipeline-flow"}
DEFAULTS = {
    "denoiser": {"name": "shapes", "num_steps": 50, "guidance_scale": 9.0, "solver": "ddim"},
    "flow": {
        "name": "shapes-flow",
        "num_steps": 28,
        "guidance_scale": 7.0,
        "solver": "own",
        "text_length": 1,
    },
}


def pipeline(family: str, pipe, out: Path) -> None:
    """Saves a folder that `DiffusionPipeline.from_pretrained` loads.

    The recommended settings stand beside it.
    """
    folder = out / FOLDERS[family]
    pipe.save_pretrained(folder)
    for part in folder.glob("tokenizer*"):
        tokenizer.save(part)
    # Half precision halves the download. The text encoders stay, since transformers would load
    # them in the precision of their file.
    for part in ("unet", "transformer", "vae"):
        if (folder / part).is_dir():
            halve(folder / part / "diffusion_pytorch_model.safetensors")
    write_atomically(
        folder / "datekit.json",
        lambda partial: partial.write_text(json.dumps(DEFAULTS[family], indent=2) + "\n"),
    )


def halve(path: Path) -> None:
    """Rewrites a file of weights in half precision."""
    weights = {name: tensor.half() for name, tensor in load_file(path).items()}
    write_atomically(path, lambda partial: save_file(weights, partial, metadata={"format": "pt"}))
