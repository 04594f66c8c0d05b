"""ImageReward: a BLIP trained on human preferences, in transformers' own BLIP modules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..registry import option
from .network import Loaded, NetworkReward

NAME, HUB, FILE = "ImageReward-v1.0", "zai-org/ImageReward", "ImageReward.pt"
MAX_LENGTH = 35  # tokens of a prompt
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the raw scores on the authors' data
HEAD_WIDTH = 64  # of every attention head, in ViT-L/16 and in BERT-base alike
LAYERS = ("0", "2", "4", "6", "7")  # of the published head, where dropout has numbers too
RENAMED = {  # part of a published name -> the same here
    "blip.visual_encoder.blocks.": "vision.encoder.layers.",
    "blip.visual_encoder.cls_token": "vision.embeddings.class_embedding",
    "blip.visual_encoder.pos_embed": "vision.embeddings.position_embedding",
    "blip.visual_encoder.patch_embed.proj.": "vision.embeddings.patch_embedding.",
    "blip.visual_encoder.norm.": "vision.post_layernorm.",
    "blip.text_encoder.": "text.",
    "mlp.layers.": "head.",
    ".norm1.": ".layer_norm1.",
    ".norm2.": ".layer_norm2.",
    ".attn.qkv.": ".self_attn.qkv.",
    ".attn.proj.": ".self_attn.projection.",
}
UNUSED = ("blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids")


@dataclass(repr=False, eq=False)
class ImageReward(NetworkReward):
    """(f(image, prompt) - 0.1672) / 1.0333, (B,), about -2 to 2 (Xu et al. 2023); in float32.

    f is a head of five linear maps on the first token of a BERT that attends to the image through a
    ViT-L/16. DATE's authors resized with antialias=False; interpolation="bicubic" is what the
    package does with files (`datekit evaluate` asks for it). Pictures that are not square are
    squeezed here, and cut there. Prompts are cut at 35 tokens. Raises ValueError for a file with
    other weights.
    """

    name = "ImageReward"

    checkpoint: str | Path = option(
        NAME,
        help="'ImageReward-v1.0' (fetched from the hub), a hub id, a folder with ImageReward.pt, "
        "or such a file; the widths are read from its weights.",
    )
    _: KW_ONLY
    tokenizer: str | Path = option(
        "google-bert/bert-base-uncased", help="Hub id or folder of bert-base-uncased."
    )

    def __post_init__(self) -> None:
        self.tokenize = _tokenizer(str(self.tokenizer))
        published = torch.load(_locate(str(self.checkpoint)), map_location="cpu", weights_only=True)
        network = build(published)
        self.hold(Loaded(network, (network.vision.config.image_size,) * 2))

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The normalised scores, (B,); carries gradient to the images."""
        tokens = self.tokenize(
            list(prompts),
            padding="max_length",
            truncation=True,
            max_length=MAX_LENGTH,
            return_tensors="pt",
        )
        ids, mask = tokens.input_ids.to(self.device), tokens.attention_mask.to(self.device)
        raw = self.network(self.pixels(images), ids, mask)
        return ((raw - MEAN) / STD).to(images.device)


class Network(nn.Module):
    """Image encoder, text encoder with cross-attention, and head.

    vision, text: BLIP configurations of the encoders; head: the widths of its linear maps.
    """

    def __init__(self, vision, text, head: Sequence[tuple[int, int]]) -> None:
        from transformers import BlipTextModel, BlipVisionModel

        super().__init__()
        self.vision = BlipVisionModel(vision)
        self.text = BlipTextModel(text, add_pooling_layer=False)
        self.head = nn.Sequential()
        for layer, widths in zip(LAYERS, head, strict=True):
            self.head.add_module(layer, nn.Linear(*widths))

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Raw scores (B,) of normalised pixels (B, 3, H, W) and tokens (B, 35) with their mask."""
        seen = self.vision(pixels).last_hidden_state
        read = self.text(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=seen
        ).last_hidden_state
        return self.head(read[:, 0])[:, 0]


def build(published: dict[str, Tensor]) -> Network:
    """The network of published weights, in their sizes. Raises ValueError for other weights."""
    weights = {}
    for name, values in published.items():
        if not name.startswith(UNUSED):
            for part, here in RENAMED.items():
                name = name.replace(part, here)
            weights[name] = values
    try:
        network = Network(*_configurations(weights))
        network.load_state_dict(weights)
    except (KeyError, RuntimeError) as error:
        raise ValueError(
            f"these are not the weights of an ImageReward: {' '.join(str(error).split())}"
        ) from error
    return network


def _configurations(weights: dict[str, Tensor]) -> tuple:
    """The configurations of both encoders and the widths of the head, read from weights."""
    from transformers import BlipTextConfig, BlipVisionConfig

    width, _, patch, _ = weights["vision.embeddings.patch_embedding.weight"].shape
    side = round((weights["vision.embeddings.position_embedding"].shape[1] - 1) ** 0.5)
    vision = BlipVisionConfig(
        hidden_size=width,
        num_attention_heads=width // HEAD_WIDTH,
        num_hidden_layers=_count(weights, ".self_attn.qkv.weight"),
        intermediate_size=len(weights["vision.encoder.layers.0.mlp.fc1.bias"]),
        image_size=side * patch,
        patch_size=patch,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
        attention_dropout=0.0,
    )
    words, hidden = weights["text.embeddings.word_embeddings.weight"].shape
    text = BlipTextConfig(
        vocab_size=words,
        hidden_size=hidden,
        encoder_hidden_size=width,
        num_attention_heads=hidden // HEAD_WIDTH,
        num_hidden_layers=_count(weights, ".crossattention.self.query.weight"),
        intermediate_size=len(weights["text.encoder.layer.0.intermediate.dense.bias"]),
        max_position_embeddings=len(weights["text.embeddings.position_embeddings.weight"]),
        hidden_act="gelu",
        layer_norm_eps=1e-12,
        is_decoder=True,  # which gives its layers cross-attention; its mask stays an encoder's
    )
    return vision, text, [weights[f"head.{layer}.weight"].shape[::-1] for layer in LAYERS]


def _count(weights: dict[str, Tensor], ending: str) -> int:
    return sum(name.endswith(ending) for name in weights)


def _tokenizer(source: str):
    from transformers import BertTokenizer

    tokenizer = BertTokenizer.from_pretrained(source)
    # In the order of the package, which gives their numbers.
    tokenizer.add_tokens(["[DEC]", "[ENC]"], special_tokens=True)
    return tokenizer


def _locate(checkpoint: str) -> Path:
    path = Path(checkpoint)
    if (path / FILE).is_file():
        return path / FILE
    if path.is_file():
        return path
    hub_id = checkpoint.count("/") == 1 and not checkpoint.startswith((".", "/", "~"))
    if checkpoint == NAME or hub_id:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(HUB if checkpoint == NAME else checkpoint, FILE))
    raise FileNotFoundError(f"{checkpoint} is no file and no folder with {FILE}")
