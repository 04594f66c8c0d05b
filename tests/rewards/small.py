"""Every reward at tiny size, from files made here in the layouts that users have."""

from __future__ import annotations

import contextlib
import json
from itertools import pairwise
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import save_file
from studies.training import tokenizer as shapes_tokenizer
from torch import nn

import datekit as dk
from datekit.rewards import image_reward as module
from datekit.rewards.hpsv3 import QUESTION

MEAN, STD = [0.4, 0.5, 0.6], [0.3, 0.25, 0.2]
VIT = {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8, "image_size": 32}
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "green", "blue", "circle"]
WORDS += ["square", "star", "left", "of", "and", ",", *LETTERS[1:]]
WORDS += [f"##{letter}" for letter in LETTERS]


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

    text = {"width": 32, "heads": 2, "layers": 2, "context_length": shapes_tokenizer.WINDOW}
    text |= {"vocab_size": len(shapes_tokenizer.build())}
    text |= {"hf_tokenizer_name": ".", "tokenizer_kwargs": {"clean": "lower"}}
    folder.mkdir()
    shapes_tokenizer.save(folder)
    weights = loud(CLIP(24, vision, dict(text))).state_dict()
    save_file(weights, folder / "open_clip_model.safetensors")
    model = {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}
    preprocess = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    config = {"model_cfg": model, "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return folder


def transformers_folder(folder: Path) -> Path:
    """An untrained transformers `CLIPModel` with tokenizer and image processor."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    tokens = shapes_tokenizer.build()
    size = {"hidden_size": 32, "intermediate_size": 64}
    size |= {"num_hidden_layers": 2, "num_attention_heads": 2}
    text = size | {"vocab_size": len(tokens), "max_position_embeddings": shapes_tokenizer.WINDOW}
    text |= {name: getattr(tokens, name) for name in ("eos_token_id", "bos_token_id")}
    text |= {"pad_token_id": tokens.pad_token_id}
    vision = size | {"image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    loud(model).save_pretrained(folder)
    shapes_tokenizer.save(folder)
    sizes = {"size": {"shortest_edge": 32}, "crop_size": 32}
    CLIPImageProcessor(image_mean=MEAN, image_std=STD, **sizes).save_pretrained(folder)
    return folder


def hps_file(path: Path) -> tuple[str, Path]:
    """An architecture registered with open_clip, and a file of weights as HPSv2's are."""
    import open_clip

    config = path.with_suffix(".json")
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1}
    config.write_text(json.dumps({"embed_dim": 16, "vision_cfg": VIT, "text_cfg": text}))
    open_clip.add_model_config(config)
    weights = loud(open_clip.create_model(path.stem)).state_dict()
    torch.save({"state_dict": weights, "epoch": 1}, path)
    return path.stem, path


def head(*widths: int) -> nn.Module:
    """Linear maps in the published layout, with dropout between all but the last two."""
    whole = nn.Module()
    whole.layers = nn.Sequential()
    for n, (into, out) in enumerate(pairwise(widths)):
        whole.layers.append(nn.Linear(into, out))
        if n < 3:
            whole.layers.append(nn.Dropout(0.2))
    return loud(whole)


def aesthetic_head(path: Path) -> tuple[Path, nn.Module]:
    """A head for 24 features in its file, and the module it came from."""
    whole = head(24, 40, 20, 12, 6, 1)
    torch.save(whole.state_dict(), path)
    return path, whole.layers


def bert_folder(folder: Path) -> Path:
    """A BERT tokenizer of a few words."""
    from transformers import BertTokenizer

    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    BertTokenizer.from_pretrained(folder).save_pretrained(folder)
    return folder


@contextlib.contextmanager
def image_reward_of(vision: dict, text: dict):
    """Inside, the network of `ImageReward` has other sizes than the published."""
    with mock.patch.dict(module.VISION, vision), mock.patch.dict(module.TEXT, text):
        yield


def image_reward(folder: Path) -> dk.rewards.ImageReward:
    """A tiny ImageReward through its file; float32, 32 px."""
    layers = {"num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 32}
    layers |= {"hidden_size": 64}
    text = layers | {"encoder_hidden_size": 64, "vocab_size": len(WORDS) + 2}
    folder.mkdir()
    tokenizer = bert_folder(folder / "tokenizer")
    with image_reward_of(layers | {"image_size": 32}, text):
        network = loud(module.build())
        network["mlp"] = head(64, 16, 12, 8, 4, 1)
        surplus = {"blip.text_encoder.embeddings.position_ids": torch.arange(512)[None]}
        torch.save(network.state_dict() | surplus, folder / "ImageReward.pt")
        return dk.rewards.ImageReward(folder / "ImageReward.pt", tokenizer=tokenizer)


# As that of Qwen2-VL and Qwen2.5-VL, for one message.
CHAT = """<|im_start|>system
You are a helpful assistant.<|im_end|>
<|im_start|>user
{% for part in messages[0]['content'] %}{% if part['type'] == 'image' %}\
<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}\
<|im_end|>
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
MARKS = [f"<|{mark}|>" for mark in ("endoftext", "im_start", "im_end")]
MARKS += [f"<|vision_{mark}|>" for mark in ("start", "end")]
MARKS += ["<|image_pad|>", "<|video_pad|>"]


def vision_language_folder(folder: Path, kind: str) -> Path:
    """An untrained model of a kind, with its processor, and the words of HPSv3 and Yes."""
    import transformers

    tokenizer = transformers.Qwen2Tokenizer({MARKS[0]: 0}, [])
    tokenizer = tokenizer.train_new_from_iterator([QUESTION, 9 * " Yes Yes"], 700)
    tokenizer.add_special_tokens({"additional_special_tokens": MARKS[1:]})
    ids = tokenizer.get_vocab()
    size = {"hidden_size": 32, "intermediate_size": 64}
    text = size | {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
    text |= {"vocab_size": len(ids) + 20}  # more than there are words, as in the published ones
    text |= {"bos_token_id": None, "eos_token_id": ids["<|im_end|>"]}
    marks = {"image_token_id": ids["<|image_pad|>"]}
    if kind == "Llava":
        vision = size | {"num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 24}
        vision |= {"image_size": 32, "patch_size": 8, "model_type": "clip_vision_model"}
        text |= {"model_type": "llama"}
        images = transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
        parts = {"image_token": "<|image_pad|>", "patch_size": 8, "num_additional_image_tokens": 1}
        parts |= {"vision_feature_select_strategy": "default"}
    else:
        vision = {"depth": 2, "num_heads": 2, "hidden_size": 32}
        vision |= {"embed_dim": 32, "mlp_ratio": 2} if kind == "Qwen2VL" else {}
        if kind == "Qwen2_5_VL":
            vision |= {"intermediate_size": 64, "out_hidden_size": 32}
            vision |= {"window_size": 56, "fullatt_block_indexes": [1]}
        text["rope_parameters"]["mrope_section"] = [2, 3, 3]
        marks |= {"video_token_id": ids["<|video_pad|>"]}
        marks |= {f"vision_{end}_token_id": ids[f"<|vision_{end}|>"] for end in ("start", "end")}
        images = transformers.Qwen2VLImageProcessor()
        parts = {"video_processor": transformers.Qwen2VLVideoProcessor()}
    config = getattr(transformers, f"{kind}Config")
    config = config(text_config=text, vision_config=vision, **marks)
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    loud(model).save_pretrained(folder)
    parts |= {"image_processor": images, "tokenizer": tokenizer, "chat_template": CHAT}
    getattr(transformers, f"{kind}Processor")(**parts).save_pretrained(folder)
    return folder


def hpsv3_file(path: Path, base: Path) -> tuple[Path, nn.Module, nn.Module]:
    """A file of HPSv3 under its published names, and the model and head that it was made from."""
    from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration

    model = Qwen2VLForConditionalGeneration.from_pretrained(base)
    model.resize_token_embeddings(len(AutoTokenizer.from_pretrained(base)) + 1)
    first, second, last = nn.Linear(32, 1024), nn.Linear(1024, 16), nn.Linear(16, 2)
    head = nn.Sequential(first, nn.ReLU(), nn.Dropout(0.05), second, nn.ReLU(), last)
    loud(model, 1), loud(head, 2)
    weights = {f"rm_head.{name}": weight for name, weight in head.state_dict().items()}
    for name, weight in model.state_dict().items():
        old = name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")
        weights[old] = weight.contiguous()
    save_file(weights, path)
    return path, model, head
