"""The command line: `datekit generate` and `datekit evaluate`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from . import pictures


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands, with the options of every method that is registered now."""
    parser = argparse.ArgumentParser(
        prog="datekit", description="See inside text-to-image sampling while it happens."
    )
    commands = parser.add_subparsers(metavar="command", dest="command", required=True)
    pictures.add_generate(commands)
    pictures.add_evaluate(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    parsed = build_parser().parse_args(argv)
    try:
        parsed.run(parsed)
        return 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if os.environ.get("DATEKIT_TRACEBACK"):
            raise
        told = f"datekit {parsed.command}: {type(error).__name__}: {error}"
        print(f"{told}\nDATEKIT_TRACEBACK=1 tells where it arose.", file=sys.stderr)
        return 2
