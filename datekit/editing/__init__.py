"""Text-guided editing: a picture and prompts to a `Run` that ends at the edited picture.

    import datekit as dk

    source, target = "a red circle left of a blue square", "a red triangle left of a blue square"
    inverted = dk.editing.ddpm_inversion(backbone, image, source, num_steps=50)
    edit = inverted.edit(target, method=dk.DATE(reward, rho=0.5), skip=0.3)
    edit.step(); edit.peek(); edit.finish().images

`ddim_inversion` and `ddpm_inversion` find the noise that leads to the picture; `sdedit` adds noise
to it; `flowedit` needs neither, on flow models.
"""

from .base import is_flow, sdedit
from .flowedit import flowedit
from .images import as_images
from .inversion import Inversion, ddim_inversion, ddpm_inversion

__all__ = ["Inversion", "as_images", "ddim_inversion", "ddpm_inversion"]
__all__ += ["flowedit", "is_flow", "sdedit"]
