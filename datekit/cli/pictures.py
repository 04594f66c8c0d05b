"""`datekit generate` and `datekit evaluate`."""

from __future__ import annotations

import argparse
import dataclasses

import torch

from ..backbones import load
from ..best_of_n import BestOf, best_of
from ..errors import whole
from ..evaluation.evaluate import evaluate
from ..evaluation.generate import generate
from ..evaluation.options import default_reward, reward_named
from ..evaluation.prompts import read_prompts
from ..evaluation.results import STYLES
from ..memory import MemorySettings
from ..sampler import Sampler
from .words import (
    add_methods,
    bare,
    device_from,
    flag,
    method_from,
    uses_reward,
    value_from,
    words_of,
)

DTYPES = ("float16", "bfloat16", "float32", "float64")
LAUNCH = "accelerate launch --multi_gpu --num_processes 2 -m datekit.cli"
PROMPTS = "text file (one a line), CSV with prompt [, seed, family], or shapes:N[:FAMILY]"
SEED = "the seed of each row follows from it, where the file has none (default: %(default)s)"
THREADS = "CPU threads of a process; the last bits of pictures depend on it (default: %(default)s)"


def add_generate(commands) -> None:
    """Add the command `generate`."""
    command = commands.add_parser(
        "generate",
        help="pictures of many prompts in a folder; the same command resumes",
        epilog=f"Several processes or GPUs: {LAUNCH} generate ... (also on CPUs).",
    )
    add = command.add_argument
    add("--prompts", required=True, help=PROMPTS)
    add("--out", required=True, help="folder of pictures, manifest and settings")
    add("--limit", type=int, metavar="N", help="only the first N prompts")
    add("--seed", type=int, default=0, help=SEED)
    add("--batch-size", type=int, default=4, help="pictures computed together (%(default)s)")
    add("--model", default="shapes", help="name, folder or hub id (default: %(default)s)")
    add("--best-of", type=int, metavar="N", help="the best of N pictures by the reward")
    add("--steps", type=int, help="sampling steps")
    add("--scheduler", help="ddim, ddpm, dpm++, euler, unipc or own")
    add("--guidance-scale", type=float, metavar="W", help="uncond + W (cond - uncond)")
    add("--eta", type=float, default=0.0, help="0 for DDIM to 1 for DDPM (default: %(default)s)")
    add("--negative-prompt")
    add("--height", type=int, help="pixels")
    add("--width", type=int, help="pixels")
    add("--device", help="cpu or cuda")
    add("--dtype", choices=DTYPES, help="of the model (default: float32)")
    add("--threads", type=int, default=1, help=THREADS)
    for field in dataclasses.fields(MemorySettings):
        text = f"see dk.memory.MemorySettings (default: {field.default})"
        add(flag(field.name), **bare(str(field.type)), help=text)
    add_methods(command)
    command.set_defaults(run=_generate)


def _generate(options: argparse.Namespace) -> None:
    words = {name: word for name, word in vars(options).items() if name != "run"}
    generate(
        sampler_from(options),
        read_prompts(options.prompts, seed=options.seed, limit=options.limit),
        options.out,
        batch_size=options.batch_size,
        negative_prompt=options.negative_prompt,
        height=options.height,
        width=options.width,
        note={"command": {name: word for name, word in words.items() if word is not None}},
    )


def sampler_from(options: argparse.Namespace) -> Sampler | BestOf:
    """The sampler, or best-of-N, that the options of `datekit generate` mean.

    Raises ValueError where they do not fit each other.
    """
    torch.set_num_threads(whole("--threads", options.threads, 1))
    words = words_of(options)
    named = words.get("reward")
    if options.best_of is not None:
        whole("--best-of", options.best_of, 1)
        if not uses_reward(options.method):
            words.pop("reward", None)  # read by the best-of alone
    dtype = getattr(torch, options.dtype) if options.dtype else None
    backbone = load(options.model, device=device_from(options.device), dtype=dtype)
    device = str(backbone.device)
    memory = {}
    for field in dataclasses.fields(MemorySettings):
        word = getattr(options, field.name)
        if word is not None:
            memory[field.name] = value_from(field.name, str(field.type), word)
    sampler = Sampler(
        backbone,
        method_from(options.method, words, model=backbone.source, device=device),
        num_steps=options.steps,
        solver=options.scheduler,
        guidance_scale=options.guidance_scale,
        eta=options.eta,
        **memory,
    )
    if options.best_of is None:
        return sampler
    reward = sampler.method.reward
    if reward is None:
        reward = reward_named(named or default_reward(backbone.source), device=device)
    return best_of(sampler, options.best_of, reward)


def add_evaluate(commands) -> None:
    """Add the command `evaluate`."""
    command = commands.add_parser(
        "evaluate",
        help="judge folders of pictures; several are compared in pairs with the first",
    )
    add = command.add_argument
    add("folders", nargs="+", metavar="FOLDER", help="as datekit generate makes them")
    add("--metrics", nargs="+", help="oracle, fid, and rewards by name (default: what fits)")
    add("--fid-reference", help=".npz of mu and sigma, or a folder of pictures")
    add("--fid-features", help="inception, or a CLIP reward by name (default: what fits)")
    add("--format", default="markdown", choices=STYLES, help="(default: %(default)s)")
    add("--out", help="file of results (JSON): every value of every picture")
    add("--batch-size", type=int, default=16)
    add("--device", help="cpu or cuda")
    command.set_defaults(run=_evaluate)


def _evaluate(options: argparse.Namespace) -> None:
    names = ("metrics", "fid_reference", "fid_features", "batch_size", "device", "out")
    settings = {name: getattr(options, name) for name in names}
    print(evaluate(options.folders, **settings).table(options.format))
