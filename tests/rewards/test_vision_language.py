"""Rewards by vision-language models against transformers' own processors and forward passes."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

import datekit as dk
from datekit.rewards.hpsv3 import QUESTION

PROMPTS = ["a red circle left of a {} blue square", "a green star " * 20, ""]


def pictures(width, height):
    """Three files' worth of smooth pictures, and the same as tensors."""
    coarse = np.random.default_rng(0).integers(0, 256, (3, 12, 12, 3), dtype=np.uint8)
    files = [Image.fromarray(x).resize((width, height), Image.BICUBIC) for x in coarse]
    images = torch.stack([torch.from_numpy(np.array(file)) for file in files])
    return files, images.permute(0, 3, 1, 2) / 255


def asked(processor, files, texts, **settings):
    """What a processor makes of pictures with texts, as one batch."""
    chats = []
    for text in texts:
        content = [{"type": "image"}, {"type": "text", "text": text}]
        message = {"role": "user", "content": content}
        chats.append(processor.apply_chat_template([message], add_generation_prompt=True))
    return processor(text=chats, images=files, padding=True, return_tensors="pt", **settings)


# Where they must be resized, the processor rounds to bytes.
@pytest.mark.parametrize(
    ("size", "grid", "rtol"), [((448, 448), (32, 32), 1e-5), ((300, 200), (28, 40), 0.03)]
)
@torch.no_grad()
def test_hpsv3_is_its_head_on_a_qwen2_vl(folders, size, grid, rtol):
    """A padded batch whose positions count tokens, as in hpsv3 1.0.0 with transformers 4.45."""
    path, model, head = folders["hpsv3"]
    processor = transformers.AutoProcessor.from_pretrained(folders["Qwen2VL"])
    processor.tokenizer.add_tokens(["<|Reward|>"], special_tokens=True)
    files, images = pictures(*size)
    texts = [QUESTION.replace("{}", prompt) for prompt in PROMPTS]
    pixels = {"size": {"shortest_edge": 448 * 448, "longest_edge": 448 * 448}}
    batch = asked(processor, files, texts, padding_side="right", images_kwargs=pixels)
    assert batch["image_grid_thw"].tolist() == 3 * [[1, *grid]]
    places = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0).expand(3, -1, -1)
    states = model.model(**batch, position_ids=places).last_hidden_state
    own = batch["input_ids"] == processor.tokenizer.convert_tokens_to_ids("<|Reward|>")
    expected = head(states[own])
    reward = dk.rewards.HPSv3(path, base=folders["Qwen2VL"], precision="float32")
    spread = expected.std(0).min().item()
    torch.testing.assert_close(reward.rate(images, PROMPTS), expected, rtol=0, atol=rtol * spread)
    assert reward(images, PROMPTS).tolist() == reward.rate(images, PROMPTS)[:, 0].tolist()


def test_hpsv3_asks_what_was_published():
    """The digest is of the text in the package hpsv3 1.0.0."""
    assert hashlib.sha256(QUESTION.encode()).hexdigest().startswith("8c1fc61108c0b8e9")


# Llava's processor cuts what the reward squeezes, so that only squares are the same.
@pytest.mark.parametrize(
    ("kind", "size"), [("Qwen2_5_VL", (84, 56)), ("Qwen2VL", (300, 200)), ("Llava", (64, 64))]
)
@torch.no_grad()
def test_vqa_score_is_the_probability_of_the_first_word(folders, kind, size):
    folder = folders[kind]
    processor = transformers.AutoProcessor.from_pretrained(folder)
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder)
    yes = processor.tokenizer.convert_tokens_to_ids("Yes")
    files, images = pictures(*size)
    expected = []
    for file, prompt in zip(files, PROMPTS, strict=True):
        text = f'Does this figure show "{prompt}"? Please answer yes or no.'
        batch = asked(processor, [file], [text])
        told = {"max_new_tokens": 1, "do_sample": False, "output_scores": True}
        out = model.generate(**batch, **told, return_dict_in_generate=True)
        expected.append(out.scores[0].softmax(-1)[0, yes])
    expected = torch.stack(expected)
    reward = dk.rewards.VQAScore(folder, precision="float32")
    atol = (1e-4 if size == (84, 56) else 0.02) * expected.std().item()
    torch.testing.assert_close(reward(images, PROMPTS), expected, rtol=0, atol=atol)


def test_half_precision_is_near(make, folders):
    """The default, as published; scores are in float32."""
    coarse = dk.rewards.VQAScore(folders["Qwen2_5_VL"])
    assert coarse.dtype == torch.bfloat16
    images = pictures(84, 56)[1].requires_grad_()
    h = coarse(images, PROMPTS)
    assert h.dtype == torch.float32
    torch.testing.assert_close(h, make("vqa")(images, PROMPTS), rtol=0.05, atol=0)
    (grad,) = torch.autograd.grad(h.sum(), images)
    (exact,) = torch.autograd.grad(make("vqa")(images, PROMPTS).sum(), images)
    assert torch.nn.functional.cosine_similarity(grad.flatten(1), exact.flatten(1)).min() > 0.98


def test_what_is_no_such_model_is_refused(folders, tmp_path):
    weights = load_file(folders["hpsv3"][0])
    del weights["visual.blocks.0.norm1.bias"]
    save_file(weights, tmp_path / "short.safetensors")
    with pytest.raises(ValueError, match=r"of an HPSv3: visual\.blocks\.0\.norm1\.bias"):
        dk.rewards.HPSv3(tmp_path / "short.safetensors", base=folders["Qwen2VL"])
    for options in ({"answer": "Certainly"}, {"question": "Is it good?"}):
        with pytest.raises(ValueError, match=r"one token, got 'Certainly'|got 'Is it good\?'"):
            dk.rewards.VQAScore(folders["Llava"], **options)
