"""VQAScore: how sure a vision-language model is that an image shows what its prompt says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..registry import option
from .vision_language import VisionLanguageReward


@dataclass(repr=False, eq=False)
class VQAScore(VisionLanguageReward):
    """P(answer | image, question), (B,) in [0, 1], of the next token (Lin et al. 2024, Eq. 1).

    The authors' package asks this of the model by default, with "Yes or No." in the question; that
    its numbers come out was not checked, as that takes the weights.
    """

    name = "VQAScore"

    model: str | Path = option(
        "Qwen/Qwen2.5-VL-7B-Instruct",
        help="Hub id or folder of a transformers model from image and text to text: of the Qwen-VL "
        "kind, or with images of one size.",
    )
    _: KW_ONLY
    question: str = option(
        'Does this figure show "{}"? Please answer yes or no.',
        help="What the model is asked, with {} for the prompt.",
    )
    answer: str = option("Yes", help="What it should say, one token.")

    def __post_init__(self) -> None:
        from transformers import AutoModelForImageTextToText

        if "{}" not in self.question:
            raise ValueError(f"a question needs {{}} for the prompt, got {self.question!r}")
        dtype = getattr(torch, self.precision)
        network = AutoModelForImageTextToText.from_pretrained(self.model, dtype=dtype)
        self.hold_model(network, self.model)
        tokens = self.processor.tokenizer.encode(self.answer, add_special_tokens=False)
        if len(tokens) != 1:
            raise ValueError(f"an answer is one token, got {self.answer!r}, which is {len(tokens)}")
        self.token = tokens[0]

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        sure = []
        for image, prompt in zip(images, prompts, strict=True):
            inputs = self.inputs(image, self.question.replace("{}", prompt))
            logits = self.network(**inputs, use_cache=False, logits_to_keep=1).logits[0, -1]
            precise = torch.promote_types(self.dtype, torch.float32)
            sure.append(logits.softmax(-1, dtype=precise)[self.token])
        return torch.stack(sure)
