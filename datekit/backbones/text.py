"""What the families share about prompts: words for people, masks, warnings of lost words."""

from __future__ import annotations

import contextlib
import functools
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
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
    dropped: range = range(0)  # the positions that the pipeline takes out after reading


def unchanged(prompt: str, tokenizer: Any) -> str:
    """The prompt, as an encoder reads it to whose tokenizer nothing was added."""
    return prompt


def as_chat(text: str, tokenizer: Any, thinking: bool) -> str:
    """A text as what a user says in a chat, and where the answer begins."""
    said = [{"role": "user", "content": text}]
    settings = {"add_generation_prompt": True, "enable_thinking": thinking}
    return tokenizer.apply_chat_template(said, tokenize=False, **settings)


def positions(
    prompts: Sequence[str], windows: Sequence[Window], spelt: Callable = unchanged
) -> tuple[Tensor | None, tuple]:
    """The mask (B, L) of the positions that may move, None for all, and the words at them.

    spelt: a prompt and a tokenizer to what the encoder reads, such as all vectors of a textual
    inversion, or the prompt in a template.
    """
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
        side = "right" if window.dropped else None  # of padding; None: the tokenizer's own
        texts = [spelt(prompt, window.tokenizer) for prompt in prompts]
        batch = window.tokenizer(texts, return_tensors="pt", padding_side=side, **sizes)
        kept = [n for n in range(window.length) if n not in window.dropped]
        ids, attended = batch.input_ids[:, kept], batch.attention_mask[:, kept].bool()
        masks.append(attended if window.padded else torch.ones_like(attended))
        read = zip(ids.tolist(), attended.tolist(), strict=True)
        words = [_words(window.tokenizer, *row) for row in read]
        rows = [row + more for row, more in zip(rows, words, strict=True)]
    mask = torch.cat(masks, 1) if any(window.padded for window in windows) else None
    return mask, tuple(rows)


def _words(tokenizer, ids: Sequence[int], attended: Sequence[int]) -> tuple[str, ...]:
    """The words at an encoder's positions: '<start>', words, '<end>' once, and '<pad>'."""
    pieces = tokenizer.convert_ids_to_tokens(ids)
    words = [piece.replace("</w>", "").replace("\u2581", "") or "_" for piece in pieces]
    if tokenizer.convert_tokens_to_ids("\u0120") != tokenizer.unk_token_id:  # it spells bytes
        added = tokenizer.added_tokens_encoder
        words = [word if word in added else _letters(word).strip() or "_" for word in words]
    if ids[0] == tokenizer.bos_token_id:
        words[0] = "<start>"
    if tokenizer.eos_token_id in ids:
        words[ids.index(tokenizer.eos_token_id)] = "<end>"
    return tuple(word if on else "<pad>" for word, on in zip(words, attended, strict=True))


@functools.cache
def _letters(symbols: str) -> str:
    """What a word of symbols for bytes says; a byte that is a part of a letter is like \\xc3."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    codes = {symbol: byte for byte, symbol in bytes_to_unicode().items()}
    return bytes(codes[symbol] for symbol in symbols).decode("utf-8", "backslashreplace")


def warn_truncated(
    prompts: Sequence[str], windows: Sequence[Window], spelt: Callable = unchanged
) -> None:
    """Warn of the words of each prompt that do not fit the windows of the encoders."""
    for tokenizer, limit in {(window.tokenizer, window.length): None for window in windows}:
        for prompt in dict.fromkeys(prompts if tokenizer else []):
            ids = tokenizer(spelt(prompt, tokenizer), truncation=False, verbose=False).input_ids
            if len(ids) > limit:
                closing = int(ids[-1] == tokenizer.eos_token_id)  # which is never cut
                warn_cut(tokenizer.decode(ids[limit - closing : len(ids) - closing]).strip(), limit)


def warn_cut(words: str, limit: int) -> None:
    """Warn of the last words of a prompt, which an encoder of `limit` tokens does not read."""
    cut = f"cut from the end of the prompt: ...{words!r}"
    warnings.warn(f"the text encoder reads {limit} tokens; {cut}", stacklevel=5)


def warn_unknown(prompts: Sequence[str], tokenizer: Any) -> None:
    """Warn of words that a tokenizer has to spell; one of the shapes world has all of its words."""
    whole = [token.removesuffix("</w>") for token in tokenizer.get_vocab() if "</w>" in token]
    known = ["a", *sorted(word for word in whole if len(word) > 1)]
    words = [word for prompt in prompts for word in re.findall(r"[^\W_]+", prompt.lower())]
    if unread := [word for word in dict.fromkeys(words) if word not in known]:
        told = f"does not know {', '.join(unread)}; it knows {', '.join(known)}"
        warnings.warn(f"this model {told}", stacklevel=4)


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
