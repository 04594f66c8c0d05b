"""`datekit softrepa train`, whose options are the parameters of `softrepa.train`."""

from __future__ import annotations

import argparse
import inspect
import os
from pathlib import Path

import torch

from .. import softrepa
from ..backbones import load
from ..methods.softrepa import takes
from .words import bare, device_from, flag, value_from

OTHERS = ("backbone", "pairs", "layers", "contrast", "t_range", "progress", "checkpoint")
LAYERS = "down,mid,up; the number of first blocks; or all (default: the authors')"


def add(commands) -> None:
    """Add the command `softrepa train`."""
    learn = commands.add_parser("softrepa", help="learn soft text tokens; the same command resumes")
    what = learn.add_subparsers(metavar="what", dest="what", required=True)
    command = what.add_parser(
        "train",
        help="tokens from image-caption pairs",
        description=inspect.getdoc(softrepa.train).replace("%", "%%"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option = command.add_argument
    option("--out", required=True, help="file of the tokens (.safetensors)")
    option("--model", default="shapes", help="name, folder or hub id (default: %(default)s)")
    option(
        "--pairs", default="shapes:2000", help="folder, CSV, COCO's captions_*.json, or shapes:N"
    )
    option("--images", help="folder that file names are relative to, where it is another")
    option("--limit", type=int, metavar="N", help="only the first N images")
    option("--layers", help=LAYERS)
    option("--checkpoint", help="file to resume from (default: OUT.checkpoint)")
    option("--dtype", choices=("float16", "bfloat16", "float32"), help="of the model")
    option("--device", help="cpu or cuda")
    for function in (softrepa.train, softrepa.Contrast):
        for name, parameter in _parameters(function).items():
            default = f"(default: {parameter.default})"
            option(flag(name), **bare(str(parameter.annotation)), help=default)
    command.set_defaults(run=_train)


def _train(options: argparse.Namespace) -> None:
    settings = _given(softrepa.train, options)
    pairs = softrepa.read_pairs(
        options.pairs, images=options.images, limit=options.limit, seed=settings.get("seed", 0)
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
        backbone, pairs, layers=layers, contrast=contrast, checkpoint=checkpoint, **settings
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


def _parameters(function) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(function).parameters
    return {name: parameters[name] for name in parameters if name not in OTHERS}


def _given(function, options: argparse.Namespace) -> dict:
    """The arguments that the command line gives for the parameters of a function."""
    arguments = {}
    for name, parameter in _parameters(function).items():
        if getattr(options, name) is not None:
            kind = str(parameter.annotation)
            arguments[name] = value_from(name, kind, getattr(options, name))
    return arguments
