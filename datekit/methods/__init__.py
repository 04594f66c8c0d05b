"""Methods: what each step feeds the network. A new method is one new file with a `Method`."""

from typing import TYPE_CHECKING

from .. import registry
from .base import STAGES, Fixed, Method, MethodUpdate

if TYPE_CHECKING:  # the others that come along; whatever is registered is there when it runs
    from .composition import Composition as Composition
    from .date import DATE as DATE
    from .ebca import EBCA as EBCA
    from .lidar import LiDAR as LiDAR
    from .random_direction import RandomDirection as RandomDirection
    from .softrepa import SoftREPA as SoftREPA
    from .universal_guidance import UniversalGuidance as UniversalGuidance

registry.import_all(__name__, __path__)
globals().update(registry.entries("method"))

__all__ = ["STAGES", "Fixed", "Method", "MethodUpdate"]
__all__ += sorted(set(registry.entries("method")) - {"Fixed"})
