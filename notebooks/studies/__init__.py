"""The studies behind the tables of the docs: one runner, what it compares, and the results."""

from studies.results import Results, load

STUDIES = (
    "quickstart",
    "compare",
    "ablate",
    "concepts",
    "edits",
    "decoders",
    "base-rate",
    "what-guides",
    "guide-recipe",
)


def find(name: str):
    """The `study.Study` of a name in `STUDIES`."""
    from importlib import import_module

    return import_module(f"studies.{name.replace('-', '_')}").STUDY


__all__ = ["STUDIES", "Results", "find", "load"]
