"""`datekit softrepa train`, whose options are the fields of `softrepa.Plan` and its `Contrast`."""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import softrepa
from ..methods.softrepa import takes
from ..registry import options
from . import words
from .pictures import add_model

PLAN = [f for f in options(softrepa.Plan).values() if f.name not in ("contrast", "t_range")]
CONTRAST = list(options(softrepa.Contrast).values())


def add(commands) -> None:
    """Add the command `softrepa train`."""
    learn = commands.add_parser("softrepa", help="learn soft text tokens; the same command resumes")
    what = learn.add_subparsers(metavar="what", dest="what", required=True)
    command = what.add_parser("train", help="tokens from image-caption pairs")
    add_model(command)
    option = command.add_argument
    option("--out", required=True, help="file of the tokens (.safetensors)")
    option("--pairs", default="shapes:2000", help="folder, CSV, COCO's captions, or shapes:N")
    option("--images", help="folder that file names are relative to, where it is another")
    option("--checkpointing", action="store_true", help="less memory, more time")
    for field in [*PLAN, *CONTRAST]:
        words.add_field(command, field, field.name)
    command.set_defaults(run=_train)


def _train(parsed: argparse.Namespace) -> None:
    plan = words.values_from(PLAN, vars(parsed))
    pairs = softrepa.read_pairs(parsed.pairs, images=parsed.images, seed=plan.get("seed", 0))
    backbone = words.load_model(parsed)
    authors = {"dweight": 0.0 if takes(backbone)[0] else 10.0}
    plan["contrast"] = softrepa.Contrast(**(authors | words.values_from(CONTRAST, vars(parsed))))
    checkpoint = Path(f"{parsed.out}.checkpoint")
    given = {"checkpoint": checkpoint, "checkpointing": parsed.checkpointing}
    tokens = softrepa.train(backbone, pairs, **given, **plan)
    tokens.save(parsed.out)
    checkpoint.unlink(missing_ok=True)
    last, seconds = tokens.config["curve"][-1], tokens.config["seconds"]
    print(
        f"{parsed.out}: {tokens.num_parameters} parameters in {seconds:.0f} s; at the end loss "
        f"{last['loss']:.3f}, the right caption found {last['accuracy']:.0%} of the time"
    )
