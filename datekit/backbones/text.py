"""What the families share about prompts: words for people, masks, warnings of lost words."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Window:
    """What one text encoder reads."""

    tokenizer: Any  # None for an encoder that is missing
    length: int  # in tokens
    padded: bool = False  # whether its padding never moves, as with T5
    in_sequence: bool = True  # whether its positions are positions of the embedding


def positions(prompts: Sequence[str], windows: Sequence[Window]) -> tuple[Tensor | None, tuple]:
    """The mask (B, L) of the positions that may move, None for all, and the words at them."""
    masks: list[Tensor] = []
    rows = [() for _ in prompts]
    windows = [window for window in windows if window.in_sequence]
    for window in windows:
        size = (len(prompts), window.length)
        if window.tokenizer is None:
            masks.append(torch.zeros(size, dtype=torch.bool))
            rows = [row + ("<none>",) * window.length for row in rows]
            continue
        sizes = {"padding": "max_length", "truncation": True, "max_length": window.length}
        batch = window.tokenizer(list(prompts), return_tensors="pt", **sizes)
        masks.append(batch.attention_mask.bool() if window.padded else torch.ones(size).bool())
        words = [_words(window.tokenizer, ids) for ids in batch.input_ids.tolist()]
        rows = [row + more for row, more in zip(rows, words, strict=True)]
    mask = torch.cat(masks, 1) if any(window.padded for window in windows) else None
    return mask, tuple(rows)


def _words(tokenizer, ids: Sequence[int]) -> tuple[str, ...]:
    """The words at an encoder's positions: '<start>', words, '<end>' once, then '<pad>'."""
    pieces = tokenizer.convert_ids_to_tokens(ids)
    words = [piece.replace("</w>", "").replace("\u2581", "") or "_" for piece in pieces]
    if ids[0] == tokenizer.bos_token_id:
        words[0] = "<start>"
    if tokenizer.eos_token_id in ids:
        end = ids.index(tokenizer.eos_token_id)
        words[end:] = ["<end>", *["<pad>"] * (len(ids) - end - 1)]
    return tuple(words)


def warn_truncated(prompts: Sequence[str], windows: Sequence[Window]) -> None:
    """Warn of the words of each prompt that do not fit the windows of the encoders."""
    for tokenizer, limit in {(window.tokenizer, window.length): None for window in windows}:
        for prompt in dict.fromkeys(prompts if tokenizer else []):
            ids = tokenizer(prompt, truncation=False, verbose=False).input_ids
            if len(ids) > limit:
                warn_cut(tokenizer.decode(ids[limit - 1 : -1]).strip(), limit)


def warn_cut(words: str, limit: int) -> None:
    """Warn of the last words of a prompt, which an encoder of `limit` tokens does not read."""
    cut = f"cut from the end of the prompt: ...{words!r}"
    warnings.warn(f"the text encoder reads {limit} tokens; {cut}", stacklevel=5)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, diffusers and transformers log errors only and show no progress bars."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    with contextlib.ExitStack() as stack:
        for log in (of_diffusers, of_transformers):
            stack.callback(log.set_verbosity, log.get_verbosity())
            log.set_verbosity_error()
            if log.is_progress_bar_enabled():
                stack.callback(log.enable_progress_bar)
                log.disable_progress_bar()
        yield
