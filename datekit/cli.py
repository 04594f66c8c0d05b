"""The command line: `datekit generate`, `datekit evaluate` and `datekit geneval`.

What it offers of methods follows from the registry.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import operator
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from . import schedules
from .backbones import load
from .best_of_n import BestOf, best_of
from .errors import whole
from .evaluation.evaluate import evaluate
from .evaluation.folders import write_geneval
from .evaluation.generate import generate
from .evaluation.metrics import default_reward, object_by_name, parse_word, reward_by_name
from .evaluation.prompts import read_prompts
from .feynman_kac import FKSteering
from .lazy import needs
from .memory import MemorySettings
from .methods import Method
from .methods.rho_rules import RhoRule
from .registry import entries, find, options
from .reno import ReNO
from .sampler import Sampler

MEMORY = dataclasses.fields(MemorySettings)
MINE = "method."  # marks the options of methods among those of a command
WHEN = "every:5, fraction:0.1, steps:0,10:20:2 (10 to 18) or third:0 (early)."


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands, with the options of every method that is registered now."""
    parser = argparse.ArgumentParser(prog="datekit")
    commands = parser.add_subparsers(metavar="command", dest="command", required=True)
    _add_generate(commands)
    _add_evaluate(commands)
    _add_geneval(commands)
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
    add("--copies", type=int, default=1, help="pictures of each prompt (%(default)s; GenEval's: 4)")
    add("--seed", type=int, default=0, help="from which those of the prompts follow (%(default)s)")
    add("--batch-size", type=int, default=4, help="pictures computed together (%(default)s)")
    one = command.add_mutually_exclusive_group().add_argument
    one("--best-of", metavar="N[:REWARD]", help="the best of N pictures by the reward")
    one("--particles", metavar="K[,OPTION=X]", help="dk.FKSteering of K, as 4,strength=100")
    one("--reno", metavar="N[,OPTION=X]", help="dk.ReNO of N iterations, as 20,rate=1")
    add("--steps", type=int, help="sampling steps")
    add("--scheduler", help="ddim, ddpm, dpm++, euler, unipc or own")
    add("--guidance-scale", type=float, metavar="W", help="uncond + W (cond - uncond)")
    add("--eta", type=float, help="0 for DDIM to 1 for DDPM (default: 0, with --particles 1)")
    add("--negative-prompt")
    add("--height", type=int, help="pixels")
    add("--width", type=int, help="pixels")
    add("--threads", type=int, default=1, help="of the CPU; the last bits depend on it")
    for field in MEMORY:
        _add_field(command, field, field.name)
    _add_methods(command)
    command.set_defaults(run=_generate)


def _generate(parsed: argparse.Namespace) -> None:
    names = ("batch_size", "negative_prompt", "height", "width")
    settings = {name: getattr(parsed, name) for name in names}
    rows = read_prompts(parsed.prompts, seed=parsed.seed, copies=parsed.copies)
    if parsed.limit is not None:
        rows = rows[: whole("--limit", parsed.limit, 1) * parsed.copies]
    generate(sampler_from(parsed), rows, parsed.out, **settings)


def sampler_from(parsed: argparse.Namespace) -> Sampler | BestOf | ReNO:
    """The sampler, best-of-N or search that the options of `datekit generate` mean."""
    torch.set_num_threads(whole("--threads", parsed.threads, 1, 1024))
    device, given = parsed.device, vars(parsed)
    if device in (None, "cuda") and torch.cuda.is_available():
        # algorithms that give the same bits in every run, and a GPU for each of several processes
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = False, True
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
    backbone = load(parsed.model, device=device, dtype=parsed.dtype)
    model, device = backbone.source, str(backbone.device)
    own = {name.removeprefix(MINE): given[name] for name in given if MINE in name}
    sampler = Sampler(
        backbone,
        method_from(parsed.method, own, model, device),
        num_steps=parsed.steps,
        solver=parsed.scheduler,
        guidance_scale=parsed.guidance_scale,
        eta=float(parsed.particles is not None) if parsed.eta is None else parsed.eta,
        **_values_from(MEMORY, given),
    )
    if (parsed.best_of, parsed.particles, parsed.reno) == (None, None, None):
        return sampler
    number, _, judge = (parsed.best_of or "").partition(":")
    reward = sampler.method.reward
    if judge or reward is None:
        reward = reward_by_name(judge or default_reward(model), device=device)
    if parsed.best_of is not None:
        return best_of(sampler, parse_word("--best-of", "int", number), reward)
    if parsed.reno is not None:
        given = _options_from(ReNO, f"iterations={parsed.reno}", device)
        return ReNO(sampler, **{"reward": reward} | given)
    given = _options_from(FKSteering, f"particles={parsed.particles}", device)
    return FKSteering(**sampler.describe() | {"reward": reward} | given)


def _options_from(cls: type, text: str, device: str) -> dict[str, Any]:
    """What "particles=4,strength=100" means for a class. Raises ValueError for no option of it."""
    words = dict(word.partition("=")[::2] for word in text.split(","))
    if idle := ", ".join(words.keys() - options(cls)):
        raise ValueError(f"{cls.__name__} does not read {idle}")
    return _values_from(options(cls).values(), words, device)


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
    needs("pandas", "tables", "datekit evaluate")  # before pictures are judged, which takes long
    names = ("metrics", "fid_reference", "batch_size", "device")
    settings = {name: getattr(parsed, name) for name in names}
    evaluation = evaluate(parsed.folders, **settings)
    if parsed.out is not None:
        evaluation.write(parsed.out)
    print(evaluation.table(parsed.format))


def _add_geneval(commands) -> None:
    text = "copy pictures to a folder that GenEval's evaluate_images.py judges"
    command = commands.add_parser("geneval", help=text)
    command.add_argument("folder", help="as datekit generate makes it of those prompts")
    command.add_argument("metadata", help="GenEval's evaluation_metadata.jsonl")
    command.add_argument("out", help="a new folder")
    command.set_defaults(run=lambda given: write_geneval(given.folder, given.metadata, given.out))


def _add_methods(command: argparse.ArgumentParser) -> None:
    """Options of a command that name a method and its settings."""
    known = [name for name in entries("method") if name != "Composition"]
    names = f"{', '.join(known)}, or a sum such as DATE+EBCA (default: %(default)s)"
    command.add_argument("--method", default="DATE", help=names)
    group = command.add_argument_group("options of the methods", "Each method reads its own.")
    fields: dict[str, dataclasses.Field] = {}
    for name in known:
        fields = options(find("method", name)) | fields  # of the first that has it
    schedule = group.add_mutually_exclusive_group()
    for name, field in fields.items():
        _add_field(schedule if name == "when" else group, field, MINE + name)
    for word, other in {"update-every": "every:{}", "update-steps": "steps:{}"}.items():
        about = {"metavar": "X", "help": f"short for --when {other.format('X')}"}
        schedule.add_argument(f"--{word}", dest=f"{MINE}when", type=other.format, **about)


def _add_field(group, field: dataclasses.Field, dest: str) -> None:
    """Add the option of a dataclass field; a bool that stands alone means true."""
    about, text = {"metavar": "X"}, field.metadata.get("help", "see dk.memory")
    if "bool" in str(field.type):
        about |= {"nargs": "?", "const": "true"}
    if field.metadata.get("choices"):
        text += f" One of {', '.join(field.metadata['choices'])}."
    if "Schedule" in str(field.type):
        text += f" {WHEN}"
    if field.default not in (dataclasses.MISSING, None):
        text += f" (default: {field.default})"
    flag = f"--{field.name.replace('_', '-')}"
    group.add_argument(flag, dest=dest, help=text.replace("%", "%%"), **about)


def method_from(
    name: str, words: Mapping[str, str | None], model: str | None = None, device: str | None = None
) -> Method:
    """A method from its name, or a sum such as "DATE+EBCA", and the words for its options.

    words: by the names of the options, such as {"rho": "0.5", "when": "every:5"}; the reward is by
    default the one that guides `model`. Raises ValueError for an option that no part reads.
    """
    classes = [find("method", part) for part in name.split("+")]
    given = {option: word for option, word in words.items() if word is not None}
    read = set().union(*(options(cls) for cls in classes))
    if idle := [option for option in given if option not in read]:
        raise ValueError(f"--method {name} does not read {', '.join(idle)}")
    given.setdefault("reward", default_reward(model))
    made = [cls(**_values_from(options(cls).values(), given, device)) for cls in classes]
    return functools.reduce(operator.add, made)


def _values_from(fields, words: Mapping[str, Any], device: str | None = None) -> dict[str, Any]:
    """What words mean for dataclass fields, those that are given; device: of a reward."""
    given = [field for field in fields if words.get(field.name) is not None]
    return {field.name: _value(field, words[field.name], device) for field in given}


def _value(field: dataclasses.Field, word: str, device: str | None) -> Any:
    kind = str(field.type)
    if field.name == "reward":
        return reward_by_name(word, device=device)
    if "Schedule" in kind:
        return _schedule_from(word)
    if "Callable" in kind and word[:1].isalpha():
        return object_by_name(RhoRule.kind, word)
    return parse_word(field.name, kind, word)


def _schedule_from(text: str) -> schedules.Schedule:
    """A schedule from its words, such as "every:5"; those of steps may be ranges."""
    name, _, words = text.partition(":")
    if name != "steps":
        return object_by_name("schedule", text)
    steps: list[int] = []
    for word in words.split(","):
        if not re.fullmatch(r"\d{1,6}(:\d{1,6}){0,2}", word):
            raise ValueError(f"steps are numbers and ranges such as 0,10:20:2, got {word!r}")
        bounds = [int(number) for number in word.split(":")]
        steps += bounds if len(bounds) == 1 else range(*bounds)
    return schedules.steps(*steps)
