"""Run a study or a benchmark: `PYTHONPATH=notebooks python -m studies NAME`; the same resumes."""

from __future__ import annotations

import argparse
from dataclasses import replace

import studies
from studies import bench, bench_explorer, families, fullsize, softrepa_sweep
from studies.results import FOLDER
from studies.runner import run
from studies.study import OPTIONS


def softrepa(out: str | None = None, model: str = "shapes", **given) -> dict:
    """The sweep of soft tokens of a model."""
    name = "softrepa-flow" if model == "shapes-flow" else "softrepa-shapes"
    return softrepa_sweep.sweep(out or FOLDER / f"{name}.json", model=model, **given)


OTHERS = {
    "softrepa": softrepa,
    "families": families.run,
    "bench": bench.run,
    "bench-explorer": bench_explorer.run,
    "bench-gpu": fullsize.run,
}


def main(arguments: list[str] | None = None) -> None:
    """Read the command and run it; results go to notebooks/studies/results by default."""
    parser = argparse.ArgumentParser("python -m studies", description=__doc__)
    parser.add_argument("name", choices=(*studies.STUDIES, *OTHERS))
    parser.add_argument("--out", help="file of results (JSON)")
    parser.add_argument("--model", choices=("shapes", "shapes-flow"))
    for name in (*OPTIONS[1:], "train_steps", "final_steps", "scenes"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int)
    parser.add_argument("--group", action="append", help="a group of rows beside the main ones")
    given = {k: v for k, v in vars(parser.parse_args(arguments)).items() if v is not None}
    name, out, groups = given.pop("name"), given.pop("out", None), given.pop("group", ())
    try:
        if name in OTHERS:
            OTHERS[name](**({"out": out} if out else {}), **given)
        else:
            run(replace(studies.find(name), **given), out, groups)
    except (TypeError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
