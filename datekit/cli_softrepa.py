"""The command line of SoftREPA: `datekit softrepa train` and `datekit softrepa sweep`."""

from __future__ import annotations

import argparse


def add(commands) -> None:
    """Adds the commands."""
    softrepa = commands.add_parser(
        "softrepa", help="learn soft text tokens; the same command resumes"
    )
    what = softrepa.add_subparsers(metavar="what", dest="what", required=True)
    _add_train(what)
    _add_sweep(what)


def _add_train(what) -> None:
    command = what.add_parser(
        "train",
        help="tokens from image-caption pairs",
        epilog=(
            "Several processes or GPUs: accelerate launch --multi_gpu --num_processes 2 -m datekit.cli softrepa train ... (also on CPUs)."
        ),
    )
    option = command.add_argument
    option("--out", required=True, help="file of the tokens (.safetensors)")
    option("--model", default="shapes", help="name, folder or hub id (default: %(default)s)")
    option(
        "--pairs",
        default="shapes:2000",
        help="folder, CSV, COCO's captions_*.json, or shapes:N (default: %(default)s)",
    )
    option("--images", help="folder that file names are relative to, where it is another")
    option("--limit", type=int, metavar="N", help="only the first N images")
    option("--steps", type=int, default=2000, help="(default: %(default)s)")
    option("--num-tokens", type=int, default=4, help="(default: %(default)s)")
    option(
        "--layers", help="down,mid,up; the number of first blocks; or all (default: the authors')"
    )
    option(
        "--time",
        action=argparse.BooleanOptionalAction,
        help="a vector for each of 100 time bins (default: the authors')",
    )
    option("--batch", type=int, default=4, help="images a batch (default: %(default)s)")
    option(
        "--negatives",
        type=int,
        metavar="N",
        help="captions that each image is held against (default: the others of the batch)",
    )
    option("--hard", action="store_true", help="its own false captions, where the pairs have such")
    option("--raw", action="store_true", help="logits without the exponential")
    option("--scale", type=float, default=4.0, help="of the logits (default: %(default)s)")
    option("--temperature", type=float, default=0.07, help="of the errors (default: %(default)s)")
    option("--dweight", type=float, help="weight of the denoising term (default: the authors')")
    option("--lr", type=float, default=1e-3, help="(default: %(default)s)")
    option("--weight-decay", type=float, default=1e-4, help="(default: %(default)s)")
    option("--restart", type=int, metavar="STEPS", help="of the learning rate (default: never)")
    option("--accumulate", type=int, default=1, help="batches a step (default: %(default)s)")
    option("--precision", choices=("bfloat16", "float16"), help="mixed")
    option(
        "--dtype",
        choices=("float16", "bfloat16", "float32"),
        help="of the model (default: as it loads)",
    )
    option("--chunk", type=int, help="pairs computed at a time")
    option("--gradient-checkpointing", action="store_true", help="less memory, more time")
    option("--checkpoint", help="(default: OUT.checkpoint)")
    option("--cache", help="file that keeps latents and text embeddings (default: none)")
    option("--device", help="cpu, cuda")
    option("--seed", type=int, default=0)
    command.set_defaults(run=lambda options: print(_train(options)))


def _train(options: argparse.Namespace) -> str:
    import os
    from pathlib import Path

    import torch

    from datekit import softrepa
    from datekit.backbones import load
    from datekit.evaluation.options import _device
    from datekit.methods.softrepa import takes

    pairs = softrepa.read_pairs(
        options.pairs, images=options.images, limit=options.limit, seed=options.seed
    )
    dtype = {"dtype": getattr(torch, options.dtype)} if options.dtype else {}
    backbone = load(options.model, device=_device(options.device), **dtype)
    layers = (
        None
        if options.layers is None
        else int(options.layers)
        if options.layers.isdigit()
        else ("all" if options.layers == "all" else tuple(options.layers.split(",")))
    )
    dweight = options.dweight
    if dweight is None:
        dweight = 0.0 if takes(backbone)[0] else 10.0
    contrast = softrepa.Contrast(options.scale, options.temperature, not options.raw, dweight)
    checkpoint = options.checkpoint or f"{options.out}.checkpoint"
    same = ("num_tokens", "time", "steps", "batch", "negatives", "hard", "lr", "weight_decay", "restart", "accumulate", "precision", "seed",
            "chunk", "cache")  # fmt: skip
    tokens = softrepa.train(
        backbone,
        pairs,
        layers=layers,
        contrast=contrast,
        checkpoint=checkpoint,
        checkpointing=options.gradient_checkpointing,
        **{name: getattr(options, name) for name in same},
    )
    first = int(os.environ.get("RANK", "0")) == 0
    if first:
        tokens.save(options.out)
        if options.checkpoint is None:
            Path(checkpoint).unlink(missing_ok=True)
    softrepa.shutdown()
    if not first:
        return ""
    last = tokens.config["curve"][-1]
    return (
        f"{options.out}: {tokens.num_parameters} parameters in {tokens.config['seconds']:.0f} s; at the end loss {last['loss']:.3f}, "
        f"the right caption found {last['accuracy']:.0%} of the time"
    )


def _add_sweep(what) -> None:
    command = what.add_parser(
        "sweep",
        help="settings on a shipped model, the best of them against DATE, on held-out prompts",
    )
    option = command.add_argument
    option("--out", required=True, help="file of results (JSON)")
    option(
        "--model",
        default="shapes",
        choices=("shapes", "shapes-flow"),
        help="(default: %(default)s)",
    )
    option("--tokens", help="file of the chosen tokens (default: where those that ship lie)")
    for name, value, text in (
        ("steps", 20, "sampling steps"), ("pairs", 304, "prompt-seed pairs of the test"), ("tuning-pairs", 128, "pairs on other prompts"),
        ("train-steps", 200, "training steps of each setting"), ("final-steps", 500, "of the chosen one"), ("scenes", 1000, "to learn from"),
        ("seed", 0, ""),
    ):  # fmt: skip
        option(f"--{name}", type=int, default=value, help=f"{text} (default: %(default)s)")
    command.set_defaults(run=lambda options: print(_sweep(options)))


def _sweep(options: argparse.Namespace) -> str:
    from datekit.softrepa import sweeping

    names = (
        "model",
        "tokens",
        "steps",
        "pairs",
        "tuning_pairs",
        "train_steps",
        "final_steps",
        "scenes",
        "seed",
    )
    return sweeping.markdown(
        sweeping.sweep(options.out, **{name: getattr(options, name) for name in names})
    )
