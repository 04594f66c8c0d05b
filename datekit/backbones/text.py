"""What the families share about prompts: words for people, masks, one warning of lost words."""

from __future__ import annotations

import contextlib
import inspect
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any

from torch import Tensor

_LINES: ContextVar[list[str] | None] = ContextVar("_LINES", default=None)


def as_texts(prompts: Sequence[str | None]) -> list[str]:
    """The prompts, with "" for a negative prompt that nobody gave."""
    return ["" if prompt is None else prompt for prompt in prompts]


@contextlib.contextmanager
def one_warning() -> Iterator[None]:
    """Inside, `warn_truncated` keeps what it has to say, for one warning at the end."""
    lines: list[str] = []
    token = _LINES.set(lines)
    try:
        yield
    finally:
        _LINES.reset(token)
    _warn(lines)


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
    waiting = _LINES.get()
    if waiting is None:
        _warn(lines)
    else:
        waiting += lines


def _warn(lines: Sequence[str]) -> None:
    """One warning, which names the line outside of datekit that led to it."""
    if not lines:
        return
    inside = (__name__.split(".")[0], "contextlib")
    depth = 1
    for frame in inspect.stack(0):
        if not frame.frame.f_globals.get("__name__", "").startswith(inside):
            break
        depth += 1
    warnings.warn(" And ".join(dict.fromkeys(lines)), stacklevel=depth)


@contextlib.contextmanager
def quiet(*libraries: str) -> Iterator[None]:
    """Inside, these libraries log errors only; `warn_truncated` says better what they would say."""
    loggers = [logging.getLogger(name) for name in libraries]
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


def t5_words(tokenizer, prompts: Sequence[str], length: int) -> tuple[tuple[str, ...], ...]:
    """The words at a T5 encoder's positions: words, '<end>', then '<pad>'."""
    rows = _padded(tokenizer, prompts, length).input_ids
    return tuple(_t5_row(tokenizer, row) for row in rows)


def _t5_row(tokenizer, ids: Sequence[int]) -> tuple[str, ...]:
    special = {tokenizer.eos_token_id: "<end>", tokenizer.pad_token_id: "<pad>"}
    words = []
    for token, piece in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True):
        words.append(special.get(token, piece.replace("\u2581", "") or "_"))
    return tuple(words)


def t5_mask(tokenizer, prompts: Sequence[str], length: int) -> Tensor:
    """(B, length) bool, True where a T5 encoder read something."""
    batch = _padded(tokenizer, prompts, length, return_tensors="pt")
    return batch.attention_mask.bool()


def _padded(tokenizer, prompts: Sequence[str], length: int, **options):
    return tokenizer(
        list(prompts), padding="max_length", truncation=True, max_length=length, **options
    )
