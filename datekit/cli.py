"""The command line: `datekit generate`, `evaluate`, `train shapes`, and the studies that the README reports."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence

from .errors import DatekitError

AT_ONCE = ("evaluate", "bench")  # commands that keep nothing on the way


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="datekit", description="See inside text-to-image sampling while it happens."
    )
    commands = parser.add_subparsers(metavar="command", dest="command", required=True)
    _add_generate(commands)
    _add_evaluate(commands)
    _add_train(commands)
    _add_compare(commands)
    _add_concepts(commands)
    _add_ablate(commands)
    _add_compare_edits(commands)
    _add_softrepa(commands)
    _add_bench(commands)
    options = parser.parse_args(argv, argparse.Namespace(what=None))
    try:
        return options.run(options) or 0
    except KeyboardInterrupt:
        resumes = options.command not in AT_ONCE or getattr(options, "full_size", False)
        print("\nStopped; the same command resumes." if resumes else "\nStopped.")
        return 130
    except (ValueError, TypeError, OSError, RuntimeError, DatekitError) as error:
        if os.environ.get("DATEKIT_TRACEBACK"):
            raise
        expected = isinstance(error, (ValueError, FileNotFoundError, DatekitError))
        told = (
            error
            if expected
            else f"{type(error).__name__}: {error}\n(with DATEKIT_TRACEBACK=1 it says where this arose)"
        )
        print(
            f"datekit {' '.join(filter(None, (options.command, options.what)))}: {told}",
            file=sys.stderr,
        )
        return 2


def _add_generate(commands) -> None:
    command = commands.add_parser(
        "generate",
        help="pictures of many prompts in a folder; the same command resumes",
        epilog=(
            "Several processes or GPUs: accelerate launch --multi_gpu --num_processes 2 -m datekit.cli generate ... (also on CPUs)."
        ),
    )
    add = command.add_argument
    add(
        "--prompts",
        required=True,
        help="text file (one a line), CSV with prompt [, seed, family], or shapes:N[:FAMILY]",
    )
    add("--out", required=True, help="folder of pictures, manifest and settings")
    add("--limit", type=int, metavar="N", help="only the first N prompts")
    add(
        "--seed",
        type=int,
        default=0,
        help="the seed of each row follows from it, where the file has none (default: %(default)s)",
    )
    add(
        "--batch-size",
        type=int,
        default=4,
        help="pictures computed together (default: %(default)s)",
    )
    add("--model", default="shapes", help="name, folder or hub id (default: %(default)s)")
    add(
        "--method",
        default="date",
        help="fixed, date, random, universal-guidance, ebca, softrepa, or a sum, date+ebca (default: %(default)s)",
    )
    add("--best-of", type=int, metavar="N", help="the best of N pictures by the reward")
    add(
        "--reward",
        help="shapes-clip, CLIPScore:ViT-L-14,openai, ImageReward, '0.5 * CLIPScore + 0.5 * ImageReward', ...",
    )
    for name, kind, text in (
        ("steps", int, "sampling steps"), ("scheduler", str, "ddim, ddpm, dpm++, euler, unipc, own"), ("guidance-scale", float, "w"),
        ("eta", float, "0 DDIM to 1 DDPM"), ("rho", float, "length of an update"), ("update-every", int, "update at steps 0, k, 2k, ..."),
        ("update-fraction", float, "share of the steps that update"), ("update-steps", str, "0,10,20 or 10:20"),
        ("update-stage", str, "early, middle or late third"), ("anchor", str, "original, running, reset"), ("between", str, "hold, revert"),
        ("inner-steps", int, "updates in one step"), ("update", str, "sequence, pooled, both"), ("negative-prompt", str, ""),
        ("height", int, "pixels"), ("width", int, "pixels"), ("ug-scale", float, ""), ("ug-backward-steps", int, ""),
        ("ug-backward-rate", float, ""), ("ug-recurrence", int, ""), ("ebca-gamma-attn", float, ""), ("ebca-gamma-norm", float, ""),
        ("tokens", str, "of softrepa: a file, or a shipped model whose tokens to take"),
        ("device", str, "cpu, cuda"),
    ):  # fmt: skip
        add(f"--{name}", type=kind, help=text or None)
    add(
        "--dtype",
        choices=("float16", "bfloat16", "float32", "float64"),
        help="of the model (default: float32)",
    )
    add(
        "--threads",
        type=int,
        default=1,
        help="CPU threads of a process; pictures depend on it in their last bits (default: %(default)s)",
    )
    add("--gradient-checkpointing", action="store_true", help="less memory, more time")
    command.set_defaults(run=_generate)


def _generate(options: argparse.Namespace) -> None:
    from datekit.evaluation import generate
    from datekit.evaluation.options import sampler_from

    rows = generate.read_prompts(options.prompts, seed=options.seed, limit=options.limit)
    note = {
        "command": {
            name: value
            for name, value in vars(options).items()
            if name not in ("run", "command") and value is not None
        }
    }
    generate.generate(
        sampler_from(vars(options)),
        rows,
        options.out,
        batch_size=options.batch_size,
        note=note,
        negative_prompt=options.negative_prompt,
        height=options.height,
        width=options.width,
    )


def _add_evaluate(commands) -> None:
    command = commands.add_parser(
        "evaluate",
        help="judge folders of pictures; several are compared pair by pair with the first",
    )
    add = command.add_argument
    add("folders", nargs="+", metavar="FOLDER", help="as datekit generate makes them")
    add(
        "--metrics",
        nargs="+",
        help="oracle, fid, and rewards by name (default: those that fit the model)",
    )
    add("--fid-reference", help=".npz of mu and sigma, or a folder of pictures")
    add(
        "--fid-features",
        help="inception, or a CLIP reward by name (default: those that fit the model)",
    )
    add(
        "--format",
        default="markdown",
        choices=("markdown", "latex", "csv"),
        help="(default: %(default)s)",
    )
    add("--out", help="file of results (JSON): every value of every picture")
    add("--batch-size", type=int, default=16)
    add("--device", help="cpu, cuda")
    command.set_defaults(run=_evaluate)


def _evaluate(options: argparse.Namespace) -> None:
    from datekit.evaluation import evaluate

    settings = {
        name: getattr(options, name)
        for name in ("metrics", "fid_reference", "fid_features", "batch_size", "device", "out")
    }
    print(evaluate.table(evaluate.evaluate(options.folders, **settings), options.format))


def _add_train(commands) -> None:
    train = commands.add_parser("train", help="train what ships, from nothing")
    what = train.add_subparsers(metavar="what", dest="what", required=True)
    shapes = what.add_parser(
        "shapes",
        help=(
            "everything that ships: the pipeline, the flow pipeline, two CLIPs, the preference and the aesthetic reward; "
            "how long that takes is in the model card, datekit/shapes/weights/MODEL_CARD.md"
        ),
    )
    shapes.add_argument(
        "--out",
        default="shapes-training",
        help="folder for checkpoints and weights (default: %(default)s)",
    )
    shapes.add_argument("--stage", action="append", help="only this stage; may be repeated")
    shapes.add_argument(
        "--device", default="auto", help="cpu, cuda, ... (default: a GPU if there is one)"
    )
    shapes.add_argument(
        "--threads",
        type=int,
        default=1,
        help="threads of each of the two lanes (default: %(default)s)",
    )
    shapes.add_argument("--seed", type=int, default=0)
    shapes.add_argument("--smoke", action="store_true", help="run every stage for a few steps only")
    shapes.set_defaults(run=_train_shapes, fail=shapes.error)


def _train_shapes(options: argparse.Namespace) -> None:
    from studies.training import recipe

    if unknown := set(options.stage or ()) - set(recipe.STAGES):
        options.fail(
            f"unknown stage {', '.join(sorted(unknown))}; there are {', '.join(recipe.STAGES)}"
        )
    recipe.train(
        options.out,
        stages=tuple(options.stage or recipe.STAGES),
        device=options.device,
        threads=options.threads,
        budget=recipe.SMOKE if options.smoke else 1.0,
        seed=options.seed,
    )


def _study(module: str, function: str, *names: str) -> Callable[[argparse.Namespace], None]:
    """What runs a study of `datekit.evaluation`: its function with those of the named options that are given, then its table."""

    def run(options: argparse.Namespace) -> None:
        study = importlib.import_module(f"datekit.evaluation.{module}")
        settings = {name: value for name in names if (value := getattr(options, name)) is not None}
        print(study.markdown(getattr(study, function)(options.out, **settings)))

    return run


def _add_compare(commands) -> None:
    compare = commands.add_parser(
        "compare", help="DATE and its peers on held-out prompts; the same command resumes"
    )
    compare.add_argument("--out", required=True, help="file of results (JSON)")
    compare.add_argument(
        "--model",
        default="shapes",
        choices=("shapes", "shapes-flow"),
        help="(default: %(default)s)",
    )
    compare.add_argument(
        "--pairs",
        type=int,
        default=304,
        help="prompt-seed pairs of the test (default: %(default)s)",
    )
    compare.add_argument(
        "--tuning-pairs",
        type=int,
        default=32,
        help="pairs on other prompts, for each strength tried (default: %(default)s)",
    )
    compare.add_argument(
        "--steps", type=int, help="of sampling (default: what the model recommends)"
    )
    compare.add_argument("--seed", type=int, default=0)
    compare.set_defaults(
        run=_study("compare", "compare", "model", "pairs", "tuning_pairs", "seed", "steps")
    )


def _add_ablate(commands) -> None:
    ablate = commands.add_parser(
        "ablate", help="the ablation study of DATE on held-out prompts; the same command resumes"
    )
    add = ablate.add_argument
    add("--out", required=True, help="file of results (JSON)")
    add(
        "--model",
        default="shapes",
        choices=("shapes", "shapes-flow"),
        help="(default: %(default)s)",
    )
    add("--steps", type=int, default=20, help="sampling steps (default: %(default)s)")
    add(
        "--pairs",
        type=int,
        default=1024,
        help="prompt-seed pairs of the main rows and of what claims rest on (default: %(default)s)",
    )
    add(
        "--side-pairs",
        type=int,
        default=320,
        help="the first so many of them, for the other rows (default: %(default)s)",
    )
    add(
        "--tuning-pairs",
        type=int,
        default=32,
        help="pairs on other prompts, to choose rho (default: %(default)s)",
    )
    add("--seed", type=int, default=0)
    add(
        "--part",
        action="append",
        dest="parts",
        help="main, or a group of rows; may be repeated (default: all)",
    )
    ablate.set_defaults(
        run=_study(
            "ablation",
            "ablate",
            "model",
            "steps",
            "pairs",
            "side_pairs",
            "tuning_pairs",
            "seed",
            "parts",
        )
    )


def _add_concepts(commands) -> None:
    concepts = commands.add_parser(
        "concepts",
        help="prompts with several things: what goes wrong, and what DATE mends; resumes",
    )
    add = concepts.add_argument
    add("--out", required=True, help="file of results (JSON)")
    add(
        "--model",
        default="shapes",
        choices=("shapes", "shapes-flow"),
        help="(default: %(default)s)",
    )
    add("--steps", type=int, default=20, help="sampling steps (default: %(default)s)")
    add(
        "--pairs",
        type=int,
        default=216,
        help="prompt-seed pairs of the test (default: %(default)s)",
    )
    add(
        "--tuning-pairs",
        type=int,
        default=24,
        help="pairs on other prompts, for each rho tried (default: %(default)s)",
    )
    add("--seed", type=int, default=0)
    concepts.set_defaults(
        run=_study("concepts", "study", "model", "pairs", "tuning_pairs", "seed", "steps")
    )


def _add_compare_edits(commands) -> None:
    edits = commands.add_parser(
        "compare-edits", help="edits with ground truth: each way to edit, with and without DATE"
    )
    edits.add_argument("--out", required=True, help="file of results (JSON)")
    edits.add_argument(
        "--editors",
        nargs="+",
        metavar="EDITOR",
        help="some of ddpm, ddim, sdedit, flowedit (default: all)",
    )
    edits.add_argument(
        "--pairs", type=int, default=240, help="edits of the test (default: %(default)s)"
    )
    edits.add_argument(
        "--tuning-pairs",
        type=int,
        default=40,
        help="other edits, to choose skip, guidance and rho (default: %(default)s)",
    )
    edits.add_argument(
        "--curve-pairs",
        type=int,
        default=60,
        help="edits of the trade-off curves, 0 for none (default: %(default)s)",
    )
    edits.add_argument(
        "--split",
        default="train",
        choices=("train", "heldout"),
        help="pairs seen in training, or not (default: %(default)s)",
    )
    edits.add_argument("--steps", type=int, default=20, help="(default: %(default)s)")
    edits.add_argument("--seed", type=int, default=0)
    edits.set_defaults(
        run=_study(
            "compare_edits",
            "compare_edits",
            "editors",
            "pairs",
            "tuning_pairs",
            "curve_pairs",
            "split",
            "steps",
            "seed",
        )
    )


def _add_softrepa(commands) -> None:
    from datekit import cli_softrepa

    cli_softrepa.add(commands)


def _add_bench(commands) -> None:
    bench = commands.add_parser("bench", help="time and memory of a step on this machine")
    bench.add_argument("--out", required=True, help="file of results (JSON)")
    bench.add_argument(
        "--explorer", action="store_true", help="how fast the widget answers, instead"
    )
    bench.add_argument(
        "--full-size",
        action="store_true",
        help="published architectures with random weights on a GPU, instead",
    )
    bench.add_argument(
        "--decoders",
        action="store_true",
        help="what cheaper decoders cost in accuracy and bring in time, instead",
    )
    bench.set_defaults(run=_bench)


def _bench(options: argparse.Namespace) -> None:
    if options.explorer:
        from datekit.widgets import bench
    elif options.full_size:
        from studies import fullsize as bench
    elif options.decoders:
        from studies import fast as bench
    else:
        from studies import bench

    print(bench.markdown(bench.bench(options.out, **(bench.cases() if options.full_size else {}))))


if __name__ == "__main__":
    sys.exit(main())
