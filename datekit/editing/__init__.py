"""Text-guided editing: an image, a source prompt and a target prompt to a `Run` that ends at the edited image.

import datekit as dk

inverted = dk.editing.ddpm_inversion(backbone, image, source="a red circle left of a blue square", num_steps=50)
edit = inverted.edit("a red triangle left of a blue square", method=dk.DATE(reward, rho=0.5), skip=0.3)
edit.step(); edit.peek(); edit.finish().images

An edit is a `Run`: pause, look, fork, rewind, save, load. `ddim_inversion` and `ddpm_inversion` find the noise that leads to the image;
`sdedit` adds noise to it; `flowedit` needs neither, on flow models.
"""

from .base import EditSampler
from .ddim import ddim_inversion
from .ddpm import ddpm_inversion
from .flowedit import FlowEditSampler, flowedit
from .images import as_images
from .inversion import Inversion
from .sdedit import sdedit

SAMPLERS = (EditSampler, FlowEditSampler)  # which a saved edit names

__all__ = [
    "SAMPLERS",
    "EditSampler",
    "FlowEditSampler",
    "Inversion",
    "as_images",
    "ddim_inversion",
    "ddpm_inversion",
    "flowedit",
    "sdedit",
]
