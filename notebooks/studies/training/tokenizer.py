"""A CLIP tokenizer in which a word of the grammar is one token; all else is spelt out.

Real CLIP tokenizer in which every word of the grammar is one token and anything else is spelt out.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from datekit.shapes.captions import WORDS

WINDOW = 16


def build() -> CLIPTokenizer:
    """The tokenizer; window of 16 tokens.

    The end token last in the vocabulary and used for padding, as in CLIP.
    """
    symbols = list(bytes_to_unicode().values())
    tokens = symbols + [symbol + "</w>" for symbol in symbols]
    ranks: dict[tuple[str, str], int] = {}  # of merges
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while (
            len(pieces) > 1
        ):  # byte-pair encoding; where no merge applies, the leftmost pair becomes one
            pairs = list(pairwise(pieces))
            pair = min(pairs, key=lambda pair: ranks.get(pair, len(ranks)))
            ranks.setdefault(pair, len(ranks))
            i = pairs.index(pair)
            pieces[i : i + 2] = ["".join(pair)]
            tokens.append("".join(pair))
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=list(ranks), model_max_length=WINDOW)


def save(folder: Path) -> None:
    """Writes the tokenizer, also as the two files that older versions of transformers read."""
    tokens = build()
    tokens.save_pretrained(folder)
    model = json.loads(tokens.backend_tokenizer.to_str())["model"]
    merges = [" ".join(merge) for merge in model["merges"]]
    (folder / "vocab.json").write_text(
        json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8"
    )
    (folder / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8"
    )
