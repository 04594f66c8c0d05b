"""Who may run a network while a method has patched it."""

from __future__ import annotations

import contextlib
import itertools
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import torch

_LOCKS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def lock_of(network: Any) -> threading.RLock:
    """The lock of a network, the same for all that wrap it."""
    return _LOCKS.setdefault(network, threading.RLock())


@contextlib.contextmanager
def patching(network: torch.nn.Module) -> Iterator[None]:
    """Inside, a network runs as it is, not as it was compiled, and in this thread alone.

    Compiled code does not see hooks that come or go later. Whoever runs it in another thread, as
    the call of a pipeline would that knows of no lock, gets a RuntimeError.
    """
    own = threading.get_ident()

    def refuse(*_: Any) -> None:
        if threading.get_ident() != own:
            told = "a method has patched this network in another thread"
            raise RuntimeError(f"{told}: wait for it, or give each thread a pipeline of its own")

    with contextlib.ExitStack() as stack:
        names = ("_compiled_call_impl", "forward")
        for module, name in itertools.product(network.modules(), names):
            compiled = vars(module).get(name)
            if plain := getattr(compiled, "_torchdynamo_orig_callable", None):
                stack.callback(setattr, module, name, compiled)
                setattr(module, name, plain)
        stack.callback(network.register_forward_pre_hook(refuse).remove)
        yield
