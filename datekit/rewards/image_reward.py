"""ImageReward: a BLIP trained on human preferences, in transformers' own BLIP modules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from torch import Tensor, nn

from ..files import read_torch
from ..registry import option
from .network import NetworkReward, published_head

HUB, FILE = "zai-org/ImageReward", "ImageReward.pt"
CUT = {"padding": "max_length", "truncation": True, "max_length": 35}  # of prompts, in tokens
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the raw scores on the authors' data
VISION = {  # a ViT-L/16
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "image_size": 224,
    "patch_size": 16,
    "layer_norm_eps": 1e-6,
}
TEXT = {  # a BERT-base that attends to images
    "vocab_size": 30524,
    "encoder_hidden_size": 1024,
    "num_attention_heads": 12,
    "is_decoder": True,  # which gives its layers cross-attention; its mask stays an encoder's
}
RENAMED = {  # part of a published name -> the same here
    "blip.visual_encoder.blocks.": "vision.encoder.layers.",
    "blip.visual_encoder.cls_token": "vision.embeddings.class_embedding",
    "blip.visual_encoder.pos_embed": "vision.embeddings.position_embedding",
    "blip.visual_encoder.patch_embed.proj.": "vision.embeddings.patch_embedding.",
    "blip.visual_encoder.norm.": "vision.post_layernorm.",
    "blip.text_encoder.": "text.",
    ".norm1.": ".layer_norm1.",
    ".norm2.": ".layer_norm2.",
    ".attn.qkv.": ".self_attn.qkv.",
    ".attn.proj.": ".self_attn.projection.",
}


@dataclass(repr=False, eq=False)
class ImageReward(NetworkReward):
    """(f(image, prompt) - 0.1672) / 1.0333, (B,), about -2 to 2 (Xu et al. 2023); in float32.

    f is a head of five linear maps on the first token of a BERT that attends to the image through a
    ViT-L/16. DATE's authors resized with antialias=False; interpolation="bicubic" is what the
    package does with files, of which it cuts those that are not square.
    """

    name = "ImageReward"

    checkpoint: str | Path | None = option(
        None, help="A local ImageReward.pt, which is fetched from the hub without one."
    )
    _: KW_ONLY
    tokenizer: str | Path = option(
        "google-bert/bert-base-uncased", help="Hub id or folder of bert-base-uncased."
    )

    def __post_init__(self) -> None:
        from huggingface_hub import hf_hub_download
        from transformers import BertTokenizer

        self.tokenize = BertTokenizer.from_pretrained(self.tokenizer)
        # In the order of the package, which gives their numbers.
        self.tokenize.add_tokens(["[DEC]", "[ENC]"], special_tokens=True)
        file = self.checkpoint or hf_hub_download(HUB, FILE)
        published = read_torch(file, "file of an ImageReward")
        network = load_published(build(), published)
        network["head"] = published_head(published, "mlp.layers")
        self.hold(network, VISION["image_size"])

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        tokens = self.tokenize(list(prompts), return_tensors="pt", **CUT).to(self.device)
        seen = self.network["vision"](self.pixels(images)).last_hidden_state
        read = self.network["text"](
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            encoder_hidden_states=seen,
        ).last_hidden_state
        raw = self.network["head"](read[:, 0])[:, 0]
        return (raw - MEAN) / STD


def build() -> nn.ModuleDict:
    """Image encoder, and text encoder with cross-attention."""
    from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

    vision = BlipVisionModel(BlipVisionConfig(**VISION))
    text = BlipTextModel(BlipTextConfig(**TEXT), add_pooling_layer=False)
    return nn.ModuleDict({"vision": vision, "text": text})


def load_published(network: nn.ModuleDict, published: dict[str, Tensor]) -> nn.ModuleDict:
    """The network with published weights; others stay out. Raises ValueError if one is missing."""
    weights = {}
    for name, values in published.items():
        for part, here in RENAMED.items():
            name = name.replace(part, here)
        weights[name] = values
    missing = network.load_state_dict(weights, strict=False).missing_keys
    if missing:
        raise ValueError(f"these are not the weights of an ImageReward: {missing[0]} is missing")
    return network
