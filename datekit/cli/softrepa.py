"""`datekit softrepa train`, whose options are the fields of `softrepa.Plan` and its `Contrast`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch

from .. import softrepa
from ..backbones import load
from ..methods.softrepa import takes
from ..registry import options as options_of
from .words import bare, device_from, flag, value_from

OWN = ("layers", "contrast", "t_range")  # fields of a plan that no number or word says


def add(commands) -> None:
    """Add the command `softrepa train`."""
    learn = commands.add_parser("softrepa", help="learn soft text tokens; the same command resumes")
    what = learn.add_subparsers(metavar="what", dest="what", required=True)
    command = what.add_parser(
        "train",
        help="tokens from image-caption pairs",
    )
    option = command.add_argument
    option("--out", required=True, help="file of the tokens (.safetensors)")
    option("--model", default="shapes", help="name, folder or hub id (default: %(default)s)")
    option(
        "--pairs", default="shapes:2000", help="folder, CSV, COCO's captions_*.json, or shapes:N"
    )
    option("--images", help="folder that file names are relative to, where it is another")
    option("--limit", type=int, metavar="N", help="only the first N images")
    option("--layers", help=options_of(softrepa.Plan)["layers"].metadata["help"])
    option("--chunk", type=int, metavar="N", help="pairs computed at a time (default: all)")
    option("--checkpointing", action="store_true", help="less memory, more time")
    option("--cache", help="file that keeps latents and text embeddings (default: none)")
    option("--checkpoint", help="file to resume from (default: OUT.checkpoint)")
    option("--dtype", choices=("float16", "bfloat16", "float32"), help="of the model")
    option("--device", help="cpu or cuda")
    for cls in (softrepa.Plan, softrepa.Contrast):
        for name, field in _fields(cls).items():
            text = f"{field.metadata['help']} (default: {field.default})"
            option(flag(name), **bare(str(field.type)), help=text)
    command.set_defaults(run=_train)


def _train(options: argparse.Namespace) -> None:
    plan = _given(softrepa.Plan, options)
    pairs = softrepa.read_pairs(
        options.pairs, images=options.images, limit=options.limit, seed=plan.get("seed", 0)
    )
    dtype = getattr(torch, options.dtype) if options.dtype else None
    backbone = load(options.model, device=device_from(options.device), dtype=dtype)
    authors = {"dweight": 0.0 if takes(backbone)[0] else 10.0}
    contrast = softrepa.Contrast(**(authors | _given(softrepa.Contrast, options)))
    layers = options.layers
    if layers is not None and layers != "all":
        layers = int(layers) if layers.isdigit() else tuple(layers.split(","))
    checkpoint = options.checkpoint or f"{options.out}.checkpoint"
    tokens = softrepa.train(
        backbone,
        pairs,
        chunk=options.chunk,
        checkpointing=options.checkpointing,
        checkpoint=checkpoint,
        cache=options.cache,
        layers=layers,
        contrast=contrast,
        **plan,
    )
    if int(os.environ.get("RANK", "0")) == 0:
        tokens.save(options.out)
        if options.checkpoint is None:
            Path(checkpoint).unlink(missing_ok=True)
        last = tokens.config["curve"][-1]
        print(
            f"{options.out}: {tokens.num_parameters} parameters in "
            f"{tokens.config['seconds']:.0f} s; at the end loss {last['loss']:.3f}, "
            f"the right caption found {last['accuracy']:.0%} of the time"
        )
    softrepa.shutdown()


def _fields(cls: type) -> dict:
    fields = options_of(cls)
    return {name: fields[name] for name in fields if name not in OWN}


def _given(cls: type, options: argparse.Namespace) -> dict:
    """The settings of a class that the command line gives."""
    settings = {}
    for name, field in _fields(cls).items():
        word = getattr(options, name)
        if word is not None:
            settings[name] = value_from(name, str(field.type), word)
    return settings
