"""Writes the trained denoiser as a pipeline folder in diffusers' own layout."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from datekit.shapes.train import denoiser, tokenizer
from datekit.shapes.train.loop import write_atomically

DEFAULTS = {"name": "shapes", "num_steps": 50, "guidance_scale": 2.0, "solver": "ddim"}


def pipeline(model: denoiser.Denoiser, vae, folder: Path) -> None:
    """Saves a folder that `StableDiffusionPipeline.from_pretrained` loads, with the recommended settings beside it."""
    denoiser.pipeline(model, vae).save_pretrained(folder)
    tokenizer.save(folder / "tokenizer")
    # Half precision halves the download. The text encoder stays: transformers would load it in the precision of its file.
    for part in ("unet", "vae"):
        halve(folder / part / "diffusion_pytorch_model.safetensors")
    write_atomically(folder / "datekit.json", lambda partial: partial.write_text(json.dumps(DEFAULTS, indent=2) + "\n"))


def halve(path: Path) -> None:
    """Rewrites a file of weights in half precision."""
    weights = {name: tensor.half() for name, tensor in load_file(path).items()}
    write_atomically(path, lambda partial: save_file(weights, partial, metadata={"format": "pt"}))
