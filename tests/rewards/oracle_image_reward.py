"""The `image-reward` package's own network, on a transformers that has moved on.

What transformers dropped since is supplied here, and only while the package's modules load or on
its own classes: the package's forward pass runs as it stands. Its `__init__` files are passed over,
as they also import a training script.
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
    """The package's module `ImageReward.ImageReward`, with `blip`, `med` and `vit` beside it."""
    try:
        files = distribution("image-reward")
    except PackageNotFoundError:
        pytest.skip(REASON)
    assert files.version == "1.5", "this shim is for image-reward 1.5"
    root = files.locate_file("ImageReward")
    modules = types.SimpleNamespace()
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # timm says that these imports moved
        stack.enter_context(mock.patch.dict(sys.modules, _modules(root)))
        heads = "find_pruneable_heads_and_indices"  # gone for good; no forward pass calls it
        for name in ("apply_chunking_to_forward", heads, "prune_linear_layer"):
            real = getattr(pytorch_utils, name, None)
            stack.enter_context(mock.patch.object(modeling_utils, name, real, create=True))
        modules.reward = importlib.import_module("ImageReward.ImageReward")
        for name in ("blip", "blip_pretrain", "med", "vit"):
            setattr(modules, name, importlib.import_module(f"ImageReward.models.BLIP.{name}"))
    _complete(modules.med.BertPreTrainedModel)
    return modules


def _modules(root) -> dict[str, types.ModuleType]:
    """Empty packages over the installed folders, and a stand-in for fairscale.

    The package uses fairscale in training only.
    """
    inner = "fairscale.nn.checkpoint.checkpoint_activations"
    names = ["ImageReward", "ImageReward.models", inner, inner.rsplit(".", 1)[0]]
    made = {name: types.ModuleType(name) for name in (*names, "fairscale", "fairscale.nn")}
    for name, module in made.items():
        own = name.startswith("ImageReward")
        module.__path__ = [str(root.joinpath(*name.split(".")[1:]))] if own else []
    made[inner].checkpoint_wrapper = None
    return made


def _complete(cls) -> None:
    """What `PreTrainedModel` no longer has.

    No weights are tied, no heads masked; masks of 1 and 0 become 0 and the least number.
    """
    cls.all_tied_weights_keys = {}
    cls.get_head_mask = lambda self, mask, layers: [None] * layers
    cls.invert_attention_mask = lambda self, mask: (
        (1.0 - mask[:, None, None, :].to(self.dtype)) * torch.finfo(self.dtype).min
    )


def build(theirs, tokenizer_folder, med_config, vision: dict):
    """The package's `ImageReward` with random weights; vision: sizes of its tower."""
    from transformers import BertTokenizer

    class Local(BertTokenizer):
        @property
        def additional_special_tokens_ids(self):  # dropped by transformers
            return [self.convert_tokens_to_ids("[ENC]")]

        @classmethod
        def from_pretrained(cls, name):
            assert name == "bert-base-uncased"
            return super().from_pretrained(tokenizer_folder)

    def create_vit(vit, image_size, *rest):
        options = {"img_size": image_size, "drop_path_rate": 0.1} | vision
        return theirs.vit.VisionTransformer(**options), vision["embed_dim"]

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(theirs.blip, "BertTokenizer", Local))
        stack.enter_context(mock.patch.object(theirs.blip_pretrain, "create_vit", create_vit))
        model = theirs.reward.ImageReward(str(med_config), device="cpu").eval()
    # The package's own initial head is so small that nothing could be told apart.
    for weight in model.mlp.parameters():
        torch.nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)
    return model
