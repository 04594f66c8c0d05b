"""What rewards by a vision-language model share: a text about one image, with gradient to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from ..registry import option
from .network import NetworkReward

PRECISIONS = ("bfloat16", "float32")


@dataclass(repr=False, eq=False, kw_only=True)
class VisionLanguageReward(NetworkReward):
    """A reward by a model that reads an image and a text; it reads one pair after the other.

    A subclass gives its network to `hold_model`. The published processor says how the text goes in,
    and at which size the image; the pixels are prepared here, as it would not carry gradient.
    """

    kind = "reward"  # said here, as this class alone is no reward that could be asked for by name
    interpolation: str = "bicubic"
    precision: str = option(
        "bfloat16",
        help="What the network computes in. The published scores use bfloat16; float32 takes twice "
        "the memory.",
        choices=PRECISIONS,
    )

    def hold_model(
        self, network: nn.Module, source: str | Path, size: dict[str, int] | None = None
    ) -> None:
        """Keep the network, frozen, and the processor of a hub id or folder; size: another one."""
        from transformers import AutoProcessor

        self.processor = AutoProcessor.from_pretrained(source)
        self.image_settings = {} if size is None else {"size": size}
        told = self.processor.image_processor
        self.resize_mode = "shortest" if getattr(told, "do_center_crop", False) else "squash"
        self.hold(network, None, told.image_mean, told.image_std, getattr(torch, self.precision))

    def inputs(self, image: Tensor, text: str) -> dict[str, Tensor]:
        """What the network takes for an image (3, H, W) and a text; carries gradient to the image.

        Raises ValueError for a processor that makes something else of pixels than is known here.
        """
        content = [{"type": "image"}, {"type": "text", "text": text}]
        chat = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        blank = Image.new("RGB", image.shape[:0:-1])  # says all but the pixels
        inputs = self.processor(
            text=[chat], images=[blank], return_tensors="pt", images_kwargs=self.image_settings
        )
        pixels, theirs = self._prepared(image, inputs), inputs["pixel_values"]
        if pixels.shape != theirs.shape:
            kind = type(self.processor.image_processor).__name__
            raise ValueError(f"{self.name} cannot prepare pixels as {kind} does: {theirs.shape}")
        return dict(inputs.to(self.device)) | {"pixel_values": pixels.to(self.dtype)}

    def _prepared(self, image: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """The pixels in the form that the processor gave those of a blank image."""
        if "image_grid_thw" not in inputs:
            return self.pixels(image[None], tuple(inputs["pixel_values"].shape[-2:]))
        told = self.processor.image_processor
        rows, columns = (told.patch_size * n for n in inputs["image_grid_thw"][0, 1:].tolist())
        x = self.pixels(image[None], (rows, columns))[0]
        return patches(x, told.patch_size, told.merge_size, told.temporal_patch_size)


def patches(x: Tensor, side: int, merge: int, frames: int) -> Tensor:
    """What models of the Qwen-VL kind read of pixels (3, H, W): (patches, 3 frames side^2).

    The merge^2 patches of one token stand together, and an image is a film that stands still.
    """
    x = x.unflatten(2, (-1, merge, side)).unflatten(1, (-1, merge, side))
    x = x.permute(1, 4, 2, 5, 0, 3, 6)  # rows, columns, merge, merge, 3, side, side
    x = x.unsqueeze(5).expand(*x.shape[:5], frames, side, side)
    return x.flatten(4).flatten(0, 3)
