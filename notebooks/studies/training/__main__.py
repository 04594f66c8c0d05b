"""`python -m studies.training OUT [--stage NAME ...]`: the shipped weights from nothing."""

from __future__ import annotations

import argparse

from studies.training import recipe


def main(arguments: list[str] | None = None) -> None:
    """Train into a folder; what was begun there is taken up again."""
    parser = argparse.ArgumentParser(prog="python -m studies.training", description=main.__doc__)
    parser.add_argument("out", help="the folder for weights, checkpoints and the model card")
    parser.add_argument(
        "--stage",
        action="append",
        choices=recipe.STAGES,
        help="train this stage alone; may be given more than once (default: all)",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, or auto (the default)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each lane")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="every stage for a few steps only")
    options = parser.parse_args(arguments)
    recipe.train(
        options.out,
        stages=tuple(options.stage or recipe.STAGES),
        device=options.device,
        threads=options.threads,
        budget=recipe.SMOKE if options.smoke else 1.0,
        seed=options.seed,
    )


if __name__ == "__main__":
    main()
