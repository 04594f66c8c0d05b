"""The command line: `datekit generate` and `datekit evaluate`."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence

import torch

from ..best_of_n import BestOf, best_of
from ..errors import whole
from ..evaluation.evaluate import evaluate
from ..evaluation.generate import generate
from ..evaluation.metrics import default_reward, parse_word, reward_named
from ..evaluation.prompts import read_prompts
from ..memory import MemorySettings
from ..sampler import Sampler
from . import words

MEMORY = dataclasses.fields(MemorySettings)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands, with the options of every method that is registered now."""
    parser = argparse.ArgumentParser(
        prog="datekit", description="See inside text-to-image sampling while it happens."
    )
    commands = parser.add_subparsers(metavar="command", dest="command", required=True)
    _add_generate(commands)
    _add_evaluate(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    parsed = build_parser().parse_args(argv)
    try:
        parsed.run(parsed)
        return 0
    except Exception as error:
        if os.environ.get("DATEKIT_TRACEBACK"):
            raise
        told = f"datekit {parsed.command}: {type(error).__name__}: {error}"
        print(f"{told}\nDATEKIT_TRACEBACK=1 tells where it arose.", file=sys.stderr)
        return 2


def _add_generate(commands) -> None:
    text = "pictures of many prompts in a folder; the same command resumes"
    launch = "accelerate launch --multi_gpu --num_processes 2 --no_python datekit generate ..."
    command = commands.add_parser("generate", help=text, epilog=f"Several processes: {launch}")
    add, dtypes = command.add_argument, ("float16", "bfloat16", "float32", "float64")
    add("--model", default="shapes", help="name, folder or hub id (default: %(default)s)")
    add("--device", help="cpu or cuda")
    add("--dtype", choices=dtypes, help="of the model (default: float32)")
    add("--prompts", required=True, help="text, CSV, TSV, JSON lines, COCO's captions or shapes:N")
    add("--out", required=True, help="folder of pictures, manifest and settings")
    add("--limit", type=int, metavar="N", help="only the first N prompts")
    add("--seed", type=int, default=0, help="from which those of the prompts follow (%(default)s)")
    add("--batch-size", type=int, default=4, help="pictures computed together (%(default)s)")
    add("--best-of", metavar="N[:REWARD]", help="the best of N pictures by the reward")
    add("--steps", type=int, help="sampling steps")
    add("--scheduler", help="ddim, ddpm, dpm++, euler, unipc or own")
    add("--guidance-scale", type=float, metavar="W", help="uncond + W (cond - uncond)")
    add("--eta", type=float, default=0.0, help="0 for DDIM to 1 for DDPM (default: %(default)s)")
    add("--negative-prompt")
    add("--height", type=int, help="pixels")
    add("--width", type=int, help="pixels")
    add("--threads", type=int, default=1, help="of the CPU; the last bits depend on it")
    for field in MEMORY:
        words.add_field(command, field, field.name)
    words.add_methods(command)
    command.set_defaults(run=_generate)


def _generate(parsed: argparse.Namespace) -> None:
    names = ("batch_size", "negative_prompt", "height", "width")
    settings = {name: getattr(parsed, name) for name in names}
    rows = read_prompts(parsed.prompts, seed=parsed.seed)[: parsed.limit]
    generate(sampler_from(parsed), rows, parsed.out, **settings)


def sampler_from(parsed: argparse.Namespace) -> Sampler | BestOf:
    """The sampler, or best-of-N, that the options of `datekit generate` mean."""
    torch.set_num_threads(whole("--threads", parsed.threads, 1))
    backbone = words.load_model(parsed)
    model, device = backbone.source, str(backbone.device)
    given = vars(parsed)
    own = {name.removeprefix(words.MINE): given[name] for name in given if words.MINE in name}
    sampler = Sampler(
        backbone,
        words.method_from(parsed.method, own, model=model, device=device),
        num_steps=parsed.steps,
        solver=parsed.scheduler,
        guidance_scale=parsed.guidance_scale,
        eta=parsed.eta,
        **words.values_from(MEMORY, given),
    )
    if parsed.best_of is None:
        return sampler
    number, _, judge = parsed.best_of.partition(":")
    reward = sampler.method.reward
    if judge or reward is None:
        reward = reward_named(judge or default_reward(model), device=device)
    return best_of(sampler, parse_word("--best-of", "int", number), reward)


def _add_evaluate(commands) -> None:
    text = "judge folders of pictures; several are compared in pairs with the first"
    command = commands.add_parser("evaluate", help=text)
    add = command.add_argument
    add("folders", nargs="+", metavar="FOLDER", help="as datekit generate makes them")
    add("--metrics", nargs="+", help="oracle, fid, and rewards by name (default: what fits)")
    add("--fid-reference", help="a folder of pictures")
    add("--format", default="markdown", choices=("markdown", "latex"))
    add("--out", help="file of results (JSON): every value of every picture")
    add("--batch-size", type=int, default=16)
    add("--device", help="cpu or cuda")
    command.set_defaults(run=_evaluate)


def _evaluate(parsed: argparse.Namespace) -> None:
    names = ("metrics", "fid_reference", "batch_size", "device")
    settings = {name: getattr(parsed, name) for name in names}
    evaluation = evaluate(parsed.folders, **settings)
    if parsed.out is not None:
        evaluation.write(parsed.out)
    print(evaluation.table(parsed.format))
