"""Who may run a network while a method has patched it."""

from __future__ import annotations

import contextlib
import itertools
import threading
import weakref
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch

_LOCKS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
_ASIDE: ContextVar[frozenset[int]] = ContextVar("networks, by id", default=frozenset())


def lock_of(network: Any) -> threading.RLock:
    """The lock of a network, the same for all that wrap it."""
    return _LOCKS.setdefault(network, threading.RLock())


@contextlib.contextmanager
def patching(network: torch.nn.Module) -> Iterator[None]:
    """Inside, a network runs as it is, not as it was compiled, and in this thread alone.

    Compiled code does not see hooks that come or go later, a user's own neither, but for what
    `tune(compile=True)` compiled. Whoever runs it in another thread, as the call of a pipeline
    would that knows of no lock, gets a RuntimeError. Not seen is another network that shares blocks
    with it: give each thread networks of its own.
    """
    own = threading.get_ident()

    def refuse(*_: Any) -> None:
        if threading.get_ident() != own:
            told = "a method has patched this network in another thread"
            raise RuntimeError(f"{told}: wait for it, or give each thread a pipeline of its own")
        if id(network) in _ASIDE.get():
            told = "a method has patched this network while its reward is asked"
            raise RuntimeError(f"{told}: a reward that samples needs a pipeline of its own")

    with contextlib.ExitStack() as stack:
        names = ("_compiled_call_impl", "forward")
        for module, name in itertools.product(network.modules(), names):
            compiled = vars(module).get(name)
            if plain := getattr(compiled, "_torchdynamo_orig_callable", None):
                stack.callback(setattr, module, name, compiled)
                setattr(module, name, plain)
        stack.callback(network.register_forward_pre_hook(refuse).remove)
        yield


@contextlib.contextmanager
def set_aside(network: Any) -> Iterator[None]:
    """Inside, this thread runs no network that it has patched: a reward means the plain one."""
    token = _ASIDE.set(_ASIDE.get() | {id(network)})
    try:
        yield
    finally:
        _ASIDE.reset(token)
