"""The `image-reward` package's own network, from its installed files, on a transformers that has moved on.

What transformers dropped since is supplied here and only while the package's modules load or on its own classes: the
package's forward pass runs as it stands. Its `__init__` files are passed over, as they also import a training script.
"""

from __future__ import annotations

import importlib
import sys
import types
import warnings
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, distribution
from unittest import mock

import pytest
import torch
from transformers import modeling_utils, pytorch_utils

REASON = "needs the package image-reward"


def package():
    """The package's module `ImageReward.ImageReward`, with `blip`, `med` and `vit` beside it; skips without the package."""
    try:
        files = distribution("image-reward")
    except PackageNotFoundError:
        pytest.skip(REASON)
    assert files.version == "1.5", "this shim is for image-reward 1.5"
    root = files.locate_file("ImageReward")
    found = types.SimpleNamespace()
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # timm says that these imports moved
        stack.enter_context(mock.patch.dict(sys.modules, _modules(root)))
        for name in (
            "apply_chunking_to_forward",
            "find_pruneable_heads_and_indices",
            "prune_linear_layer",
        ):
            real = getattr(
                pytorch_utils, name, None
            )  # the second is gone for good, and no forward pass calls it
            stack.enter_context(mock.patch.object(modeling_utils, name, real, create=True))
        found.reward = importlib.import_module("ImageReward.ImageReward")
        for name in ("blip", "blip_pretrain", "med", "vit"):
            setattr(found, name, importlib.import_module(f"ImageReward.models.BLIP.{name}"))
    _complete(found.med.BertPreTrainedModel)
    return found


def _modules(root) -> dict[str, types.ModuleType]:
    """Empty packages over the installed folders, and a stand-in for fairscale, which the package uses in training only."""
    made = {
        name: types.ModuleType(name)
        for name in (
            "ImageReward",
            "ImageReward.models",
            "ImageReward.models.BLIP",
            "fairscale",
            "fairscale.nn",
            "fairscale.nn.checkpoint",
            "fairscale.nn.checkpoint.checkpoint_activations",
        )
    }
    for name, module in made.items():
        module.__path__ = (
            [str(root.joinpath(*name.split(".")[1:]))] if name.startswith("ImageReward") else []
        )
    made["fairscale.nn.checkpoint.checkpoint_activations"].checkpoint_wrapper = None
    return made


def _complete(cls) -> None:
    """What `PreTrainedModel` no longer has: no tied weights, no heads to mask, and 1 -> 0, 0 -> the least number for masks."""
    cls.all_tied_weights_keys = {}
    cls.get_head_mask = lambda self, mask, layers: [None] * layers
    cls.invert_attention_mask = lambda self, mask: (
        (1.0 - mask[:, None, None, :].to(self.dtype)) * torch.finfo(self.dtype).min
    )


def build(theirs, tokenizer_folder, med_config, vision: dict | None = None):
    """The package's `ImageReward` with random weights; vision: other sizes than its ViT-L/16 (embed_dim, depth, num_heads, ...)."""
    from transformers import BertTokenizer

    class Local(BertTokenizer):
        additional_special_tokens_ids = property(
            lambda self: [self.convert_tokens_to_ids("[ENC]")]
        )  # dropped by transformers

        @classmethod
        def from_pretrained(cls, name):
            assert name == "bert-base-uncased"
            return super().from_pretrained(tokenizer_folder)

    def create_vit(vit, image_size, *rest):
        return theirs.vit.VisionTransformer(
            **{"img_size": image_size, "drop_path_rate": 0.1} | vision
        ), vision["embed_dim"]

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(theirs.blip, "BertTokenizer", Local))
        if vision is not None:
            stack.enter_context(mock.patch.object(theirs.blip_pretrain, "create_vit", create_vit))
        model = theirs.reward.ImageReward(str(med_config), device="cpu").eval()
    if (width := model.blip.text_encoder.config.hidden_size) != 768:
        model.mlp = theirs.reward.MLP(width).eval()
    for weight in (
        model.mlp.parameters()
    ):  # the package's own initial head is so small that nothing could be told apart
        torch.nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
    return model
