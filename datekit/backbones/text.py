"""What the families share about prompts: words for people, masks, one warning of lost words."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor


def as_texts(prompts: Sequence[str | None]) -> list[str]:
    """The prompts, with "" for a negative prompt that nobody gave."""
    return ["" if prompt is None else prompt for prompt in prompts]


def warn_truncated(prompts: Sequence[str], *windows: tuple[Any, int]) -> None:
    """Warn once of the words that do not fit the window of an encoder.

    windows: for each encoder, its tokenizer and the number of tokens that it reads.
    """
    lines = []
    for tokenizer, limit in windows:
        lost = []
        for prompt in dict.fromkeys(prompts):
            ids = tokenizer(prompt, truncation=False, verbose=False).input_ids
            if len(ids) > limit:
                lost.append(tokenizer.decode(ids[limit - 1 : -1]).strip())
        if lost:
            cut = "; ".join(f"...{words!r}" for words in lost)
            lines.append(
                f"the text encoder reads {limit} tokens; "
                f"cut from the end of {len(lost)} prompt(s): {cut}"
            )
    if lines:
        warnings.warn(" And ".join(dict.fromkeys(lines)), stacklevel=3)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, diffusers and transformers log errors only."""
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def clip_words(tokenizer, prompts: Sequence[str], length: int) -> tuple[tuple[str, ...], ...]:
    """The words at a CLIP encoder's positions: '<start>', words, '<end>' once, then '<pad>'."""
    rows = _padded(tokenizer, prompts, length).input_ids
    return tuple(_clip_row(tokenizer, row) for row in rows)


def _clip_row(tokenizer, ids: Sequence[int]) -> tuple[str, ...]:
    words, ended = [], False
    for token, piece in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True):
        if token == tokenizer.bos_token_id and not words:
            words.append("<start>")
        elif token == tokenizer.eos_token_id and not ended:
            words.append("<end>")
            ended = True
        else:
            words.append("<pad>" if ended else piece.replace("</w>", ""))
    return tuple(words)


def t5_positions(
    tokenizer, prompts: Sequence[str], length: int
) -> tuple[Tensor, tuple[tuple[str, ...], ...]]:
    """What a T5 encoder reads at its positions: a mask and the words, '<end>', then '<pad>'.

    The mask, (B, length) bool, is True where it read something.
    """
    batch = _padded(tokenizer, prompts, length, return_tensors="pt")
    special = {tokenizer.eos_token_id: "<end>", tokenizer.pad_token_id: "<pad>"}
    rows = []
    for ids in batch.input_ids.tolist():
        pairs = zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True)
        words = [special.get(token, piece.replace("\u2581", "") or "_") for token, piece in pairs]
        rows.append(tuple(words))
    return batch.attention_mask.bool(), tuple(rows)


def _padded(tokenizer, prompts: Sequence[str], length: int, **options):
    return tokenizer(
        list(prompts), padding="max_length", truncation=True, max_length=length, **options
    )
