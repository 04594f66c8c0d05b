"""Every reward at tiny size, from files made here in the layouts that users have; nothing is downloaded."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from studies.training import tokenizer as shapes_tokenizer
from torch import nn

import datekit as dk
from datekit.rewards.image_reward import NAME

VIT = {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "green", "blue", "circle", "square", "star", "left", "of", "and", ",",
         *"bcdefghijklmnopqrstuvwxyz", *(f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")]  # fmt: skip


def loud(module: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights of a size at which every part of the network matters to its output."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in module.named_parameters():
        if weight.ndim > 1:
            fan = weight[0].numel() if "embedding" not in name else 4
            weight.data = torch.randn(weight.shape, generator=generator) * fan**-0.5
    return module.eval()


def open_clip_folder(folder: Path, vision: dict = VIT) -> Path:
    """An untrained open_clip model with the shapes world's tokenizer."""
    from open_clip.model import CLIP

    text = {"context_length": shapes_tokenizer.WINDOW, "vocab_size": len(shapes_tokenizer.build()), "width": 32, "heads": 2, "layers": 2,
            "hf_tokenizer_name": ".", "tokenizer_kwargs": {"clean": "lower"}}  # fmt: skip
    folder.mkdir()
    shapes_tokenizer.save(folder)
    save_file(
        loud(CLIP(24, vision, dict(text))).state_dict(), folder / "open_clip_model.safetensors"
    )
    preprocess = {
        "mean": [0.4, 0.5, 0.6],
        "std": [0.3, 0.25, 0.2],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    config = {
        "model_cfg": {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text},
        "preprocess_cfg": preprocess,
    }
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


def transformers_folder(folder: Path) -> Path:
    """An untrained transformers `CLIPModel` with tokenizer and image processor."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    tokens = shapes_tokenizer.build()
    size = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    text = size | {"vocab_size": len(tokens), "max_position_embeddings": shapes_tokenizer.WINDOW, "eos_token_id": tokens.eos_token_id,
                   "bos_token_id": tokens.bos_token_id, "pad_token_id": tokens.pad_token_id}  # fmt: skip
    model = CLIPModel(
        CLIPConfig(
            text_config=text,
            vision_config=size | {"image_size": 32, "patch_size": 8},
            projection_dim=24,
        )
    )
    loud(model).save_pretrained(folder)
    shapes_tokenizer.save(folder)
    CLIPImageProcessor(
        image_mean=[0.4, 0.5, 0.6],
        image_std=[0.3, 0.25, 0.2],
        size={"shortest_edge": 32},
        crop_size=32,
    ).save_pretrained(folder)
    return folder


def hps_file(path: Path) -> tuple[str, Path]:
    """An architecture registered with open_clip, and a file of weights as HPSv2's are: under "state_dict"."""
    import open_clip

    config = path.with_suffix(".json")
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1}
    config.write_text(json.dumps({"embed_dim": 16, "vision_cfg": VIT, "text_cfg": text}))
    open_clip.add_model_config(config)
    torch.save(
        {"state_dict": loud(open_clip.create_model(path.stem)).state_dict(), "epoch": 1}, path
    )
    return path.stem, path


def aesthetic_head(path: Path, layout: str) -> tuple[Path, nn.Module]:
    """A head for 24 features in one of the two published layouts, and the module it came from, dropout included."""
    if layout == "laion":
        head = nn.Linear(24, 1)
    else:
        head = nn.Module()
        head.layers = nn.Sequential(nn.Linear(24, 40), nn.Dropout(0.2), nn.Linear(40, 20), nn.Dropout(0.2), nn.Linear(20, 12),
                                    nn.Dropout(0.1), nn.Linear(12, 6), nn.Linear(6, 1))  # fmt: skip
    loud(head)
    (save_file if path.suffix == ".safetensors" else torch.save)(head.state_dict(), path)
    return path, head if layout == "laion" else head.layers


def bert_folder(folder: Path) -> Path:
    """A BERT tokenizer of a few words."""
    from transformers import BertTokenizer

    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    BertTokenizer.from_pretrained(folder).save_pretrained(folder)
    return folder


def published_image_reward(
    width: int, depth: int, hidden: int, layers: int, mlp: int, head: tuple[int, ...]
) -> dict[str, torch.Tensor]:
    """Random weights under the names of the published checkpoint, written out from its description; 32 px images."""
    shapes = {"blip.visual_encoder.cls_token": (1, 1, width), "blip.visual_encoder.pos_embed": (1, 5, width),
              "blip.visual_encoder.patch_embed.proj.weight": (width, 3, 16, 16), "blip.visual_encoder.patch_embed.proj.bias": (width,),
              "blip.vision_proj.weight": (8, width), "blip.vision_proj.bias": (8,)}  # fmt: skip
    linear = lambda name, out, into: {f"{name}.weight": (out, into), f"{name}.bias": (out,)}
    norm = lambda name, size: {f"{name}.weight": (size,), f"{name}.bias": (size,)}
    for n in range(depth):
        block = f"blip.visual_encoder.blocks.{n}"
        shapes |= norm(f"{block}.norm1", width) | norm(f"{block}.norm2", width)
        shapes |= linear(f"{block}.attn.qkv", 3 * width, width) | linear(
            f"{block}.attn.proj", width, width
        )
        shapes |= linear(f"{block}.mlp.fc1", mlp, width) | linear(f"{block}.mlp.fc2", width, mlp)
    shapes |= norm("blip.visual_encoder.norm", width)
    text = "blip.text_encoder"
    shapes |= {f"{text}.embeddings.word_embeddings.weight": (len(WORDS) + 2, hidden),
               f"{text}.embeddings.position_embeddings.weight": (40, hidden)} | norm(f"{text}.embeddings.LayerNorm", hidden)  # fmt: skip
    for n in range(layers):
        layer = f"{text}.encoder.layer.{n}"
        for kind, seen in (("attention", hidden), ("crossattention", width)):
            shapes |= linear(f"{layer}.{kind}.self.query", hidden, hidden) | linear(
                f"{layer}.{kind}.output.dense", hidden, hidden
            )
            shapes |= linear(f"{layer}.{kind}.self.key", hidden, seen) | linear(
                f"{layer}.{kind}.self.value", hidden, seen
            )
            shapes |= norm(f"{layer}.{kind}.output.LayerNorm", hidden)
        shapes |= linear(f"{layer}.intermediate.dense", mlp, hidden) | linear(
            f"{layer}.output.dense", hidden, mlp
        )
        shapes |= norm(f"{layer}.output.LayerNorm", hidden)
    for number, (into, out) in zip(
        (0, 2, 4, 6, 7), zip((hidden, *head), (*head, 1), strict=True), strict=True
    ):
        shapes |= linear(f"mlp.layers.{number}", out, into)
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(shape, generator=generator)
        * (shape[-1] ** -0.5 if len(shape) > 1 else 0.1)
        for name, shape in shapes.items()
    }
    norms = {
        name: 1 + weights[name]
        for name in weights
        if ("norm" in name.lower()) and name.endswith("weight")
    }
    return weights | norms | {f"{text}.embeddings.position_ids": torch.arange(40)[None]}


def image_reward(folder: Path) -> dk.rewards.ImageReward:
    """A tiny ImageReward through its file; float32, 32 px."""
    folder.mkdir()
    torch.save(published_image_reward(64, 2, 64, 2, 32, (16, 12, 8, 4)), folder / "ImageReward.pt")
    assert NAME == "ImageReward-v1.0"
    return dk.rewards.ImageReward(folder, tokenizer=bert_folder(folder / "tokenizer"))
