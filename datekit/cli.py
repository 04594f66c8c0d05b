"""The command line: `datekit train shapes`, `datekit compare`, `datekit bench`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    parser = argparse.ArgumentParser(prog="datekit", description="See inside text-to-image sampling while it happens.")
    commands = parser.add_subparsers(metavar="command", required=True)
    _add_train(commands)
    _add_compare(commands)
    _add_bench(commands)
    options = parser.parse_args(argv)
    try:
        return options.run(options) or 0
    except KeyboardInterrupt:
        print("\nStopped; the same command resumes.")
        return 130


def _add_train(commands) -> None:
    train = commands.add_parser("train", help="train what ships, from nothing")
    what = train.add_subparsers(metavar="what", required=True)
    shapes = what.add_parser("shapes", help="the shapes pipeline and its two CLIPs (about an hour on two CPU cores)")
    shapes.add_argument("--out", default="shapes-training", help="folder for checkpoints and weights (default: %(default)s)")
    shapes.add_argument("--stage", action="append", help="only this stage; may be repeated")
    shapes.add_argument("--device", default="auto", help="cpu, cuda, ... (default: a GPU if there is one)")
    shapes.add_argument("--threads", type=int, default=1, help="threads of each of the two lanes (default: %(default)s)")
    shapes.add_argument("--seed", type=int, default=0)
    shapes.add_argument("--smoke", action="store_true", help="run every stage for a few steps only")
    shapes.set_defaults(run=_train_shapes, fail=shapes.error)


def _train_shapes(options: argparse.Namespace) -> None:
    from datekit.shapes.train import recipe

    if unknown := set(options.stage or ()) - set(recipe.STAGES):
        options.fail(f"unknown stage {', '.join(sorted(unknown))}; there are {', '.join(recipe.STAGES)}")
    recipe.train(
        options.out,
        stages=tuple(options.stage or recipe.STAGES),
        device=options.device,
        threads=options.threads,
        budget=recipe.SMOKE if options.smoke else 1.0,
        seed=options.seed,
    )


def _add_compare(commands) -> None:
    compare = commands.add_parser("compare", help="fixed embedding, random direction, best-of-N and DATE on held-out prompts")
    compare.add_argument("--out", required=True, help="file of results (JSON)")
    compare.add_argument("--pairs", type=int, default=304, help="prompt-seed pairs of the test (default: %(default)s)")
    compare.add_argument("--tuning-pairs", type=int, default=32, help="pairs on other prompts, to choose rho (default: %(default)s)")
    compare.add_argument("--seed", type=int, default=0)
    compare.set_defaults(run=_compare)


def _compare(options: argparse.Namespace) -> None:
    from datekit.evaluation import compare

    print(compare.markdown(compare.compare(options.out, pairs=options.pairs, tuning_pairs=options.tuning_pairs, seed=options.seed)))


def _add_bench(commands) -> None:
    bench = commands.add_parser("bench", help="time and memory of a step on this machine")
    bench.add_argument("--out", required=True, help="file of results (JSON)")
    bench.set_defaults(run=_bench)


def _bench(options: argparse.Namespace) -> None:
    from datekit.evaluation import bench

    print(bench.markdown(bench.bench(options.out)))
