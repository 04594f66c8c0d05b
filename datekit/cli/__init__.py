"""The command line: `datekit generate`, `datekit evaluate` and `datekit softrepa train`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from ..errors import DatekitError
from . import pictures, softrepa
from .words import method_from

__all__ = ["build_parser", "main", "method_from"]


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands, with the options of every method that is registered now."""
    parser = argparse.ArgumentParser(
        prog="datekit", description="See inside text-to-image sampling while it happens."
    )
    commands = parser.add_subparsers(metavar="command", dest="command", required=True)
    pictures.add_generate(commands)
    pictures.add_evaluate(commands)
    softrepa.add(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    options = build_parser().parse_args(argv)
    try:
        options.run(options)
        return 0
    except KeyboardInterrupt:
        print("\nStopped.", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, RuntimeError, DatekitError) as error:
        if os.environ.get("DATEKIT_TRACEBACK"):
            raise
        message = str(error)
        if not isinstance(error, (ValueError, FileNotFoundError, DatekitError)):
            message = f"{type(error).__name__}: {error}\nDATEKIT_TRACEBACK=1 tells where it arose."
        print(f"datekit {options.command}: {message}", file=sys.stderr)
        return 2
