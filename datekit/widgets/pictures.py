"""What the explorer shows of latents, maps and embeddings: as pictures, and as shares by token."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ..types import to_pil

if TYPE_CHECKING:
    from PIL.Image import Image

PICTURES = {
    "xt": "the noisy latent, its first three channels as colours",
    "x0bar": "the expected latent, its first three channels as colours",
    "grad": "where the reward wants the expected latent changed, bright is large",
    "guidance": "where the method has changed the expected latent, bright is large",
    "decoded": "the expected picture",
}  # what each picture of a frame shows, in words


def size_map(x: Tensor) -> Tensor:
    """Root mean square over channels, (1, C, h, w) to (h, w)."""
    return x[0].double().square().mean(0).sqrt()


def heat(values: Tensor) -> Image:
    """A map (h, w) from 0 to its largest value, in colours that differ in brightness too."""
    from matplotlib import colormaps
    from PIL import Image

    share = (values / values.max().clamp_min(1e-30)).cpu().numpy()
    return Image.fromarray((colormaps["cividis"](share)[..., :3] * 255).round().astype("uint8"))


def false_colours(latent: Tensor) -> Image:
    """Three channels of a latent (1, C, h, w) as colours; 0 is grey, the ends 3 deviations."""
    shown = latent[:, :3] if latent.shape[1] >= 3 else latent[:, :1].expand(-1, 3, -1, -1)
    return to_pil(0.5 + shown / (6 * shown.std().clamp_min(1e-30)))[0]


def shares_by_token(
    tokens: Sequence[str] | None, *vectors: Tensor
) -> tuple[tuple[str, ...], tuple[float, ...], ...]:
    """Words, and for each tensor (L, D) the words' shares of its squared length, 0 where that is 0.

    All padding counts as one word. tokens: L words, or None where the encoder names none.
    """
    if tokens is None:
        tokens = [f"token {n}" for n in range(len(vectors[0]))]
    kept = [n for n, word in enumerate(tokens) if word != "<pad>"]
    padding = [n for n, word in enumerate(tokens) if word == "<pad>"]
    words = tuple(tokens[n] for n in kept) + ((f"<pad> x{len(padding)}",) if padding else ())
    shares = []
    for vector in vectors:
        squares = vector.double().square().sum(1)
        squares = squares / (squares.sum() + (squares.sum() == 0))
        rest = (squares[padding].sum().item(),) if padding else ()
        shares.append(tuple(squares[kept].tolist()) + rest)
    return words, *shares


def screen_png(picture: Image, size: int) -> bytes:
    """A picture as PNG of a width from `size` to twice that: no more travels than is seen."""
    from PIL import Image

    if picture.width < size:
        zoom = -(-size // picture.width)
        large = (picture.width * zoom, picture.height * zoom)
        picture = picture.resize(large, Image.Resampling.NEAREST)
    elif picture.width > 2 * size:
        small = (2 * size, round(2 * size * picture.height / picture.width))
        picture = picture.resize(small, Image.Resampling.BOX)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
