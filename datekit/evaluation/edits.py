"""Measures of an edit, fidelity to the source and distance to an ideal, and benchmarks of edits as a folder with a CSV file."""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import unknown

IMAGE = ("image", "init_img", "image_path")  # names that a column goes by in published benchmarks
SOURCE = ("source", "source_prompt", "original_prompt")
TARGET = ("target", "target_prompt", "target_prompts", "editing_prompt")
LPIPS = {
    "alex": "alexnet-owt-7be5be79.pth",
    "vgg": "vgg16-397923af.pth",
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
}  # torchvision's files


@dataclass(frozen=True)
class EditPair:
    """One edit of a benchmark: image: a path; source, target: prompts, source "" where the benchmark has none; kind: its sort, if
    any; ideal: a path of the ideal result, or None."""

    image: Path
    source: str
    target: str
    kind: str = ""
    ideal: Path | None = None


def read_edits(path: str | Path) -> list[EditPair]:
    """The edits of a CSV file, or of the one CSV file in a folder; paths in it are relative to it.

    Columns image (or init_img), source (or source_prompt; may be absent or empty), target (or target_prompt, target_prompts: one, or
    a JSON list of several, each an edit), and perhaps kind and ideal: what the ImageNet-R-TI2I benchmark's own list holds. Raises
    FileNotFoundError for a missing file or image, ValueError for a missing column or an empty target, with the line.
    """
    path = Path(path)
    if path.is_dir():
        tables = sorted(path.glob("*.csv"))
        if len(tables) != 1:
            raise ValueError(
                f"{path} must hold one CSV file, it holds {len(tables)}; name the file itself"
            )
        path = tables[0]
    with path.open(newline="", encoding="utf-8-sig") as file:
        table = csv.DictReader(file)
        columns = {"image": IMAGE, "source": SOURCE, "target": TARGET}
        found = {
            name: next((c for c in known if c in (table.fieldnames or ())), None)
            for name, known in columns.items()
        }
        for name in ("image", "target"):
            if found[name] is None:
                raise ValueError(
                    f"{path} has no column {' or '.join(columns[name])}; it has {', '.join(table.fieldnames or ['none'])}"
                )
        return [edit for row in table for edit in _edits(path, table.line_num, row, found)]


def _edits(path: Path, line: int, row: dict, found: dict) -> list[EditPair]:
    text = lambda name: (row.get(name) or "").strip() if name else ""
    target = text(found["target"])
    targets = json.loads(target) if target.startswith("[") else [target]
    if not targets or not all(isinstance(t, str) and t.strip() for t in targets):
        raise ValueError(f"{path}, line {line}: the target prompt is empty")
    image, ideal = path.parent / text(found["image"]), text("ideal")
    for file in (image, path.parent / ideal if ideal else image):
        if not file.is_file():
            raise FileNotFoundError(f"{path}, line {line}: there is no image {file}")
    return [
        EditPair(
            image, text(found["source"]), t, text("kind"), path.parent / ideal if ideal else None
        )
        for t in targets
    ]


def write_edits(folder: str | Path, edits: Sequence) -> Path:
    """Edits of the shapes world (`datekit.shapes.sample_edits`) in that format: PNG files and edits.csv, whose path is returned."""
    from ..shapes.edits import pictures
    from ..types import to_pil

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    before, after, _ = pictures(edits)
    with (folder / "edits.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("image", "source", "target", "kind", "ideal"))
        for n, (edit, one, other) in enumerate(
            zip(edits, to_pil(before), to_pil(after), strict=True)
        ):
            names = f"{n:04d}.png", f"{n:04d}-ideal.png"
            one.save(folder / names[0]), other.save(folder / names[1])
            table.writerow((names[0], edit.source, edit.target, edit.kind, names[1]))
    return folder / "edits.csv"


def pixel_distance(images: Tensor, others: Tensor, where: Tensor | None = None) -> Tensor:
    """Root of the mean squared difference of pixels, (B,), each image against its own other; (B, 3, H, W) in [0, 1].

    where: (B, H, W) bool, the pixels that count, all by default. Raises ValueError on different shapes, or where nothing counts.
    """
    _check(images, others)
    squared = (images - others).double().square().mean(1).flatten(1)
    weight = torch.ones_like(squared) if where is None else where.flatten(1).to(squared)
    if (weight.sum(1) == 0).any():
        raise ValueError("an image has no pixel that counts")
    return ((squared * weight).sum(1) / weight.sum(1)).sqrt()


def background_distance(images: Tensor, sources: Tensor, changed: Tensor) -> Tensor:
    """How far what should have stayed has moved: `pixel_distance` over the pixels outside `changed` (B, H, W) bool; 0 is perfect."""
    return pixel_distance(images, sources, ~changed)


def feature_distance(images: Tensor, others: Tensor, reward) -> Tensor:
    """1 - cosine of the image features of a CLIP, such as `dk.rewards.load("shapes-clip-heldout")`; (B,)."""
    _check(images, others)
    if not hasattr(reward, "image_features"):
        raise TypeError(
            f"{getattr(reward, 'name', reward)!r} has no image features; take a CLIP reward"
        )
    with torch.no_grad():
        a, b = (reward.image_features(x.to(reward.device)) for x in (images, others))
    return (1 - (a * b).sum(1)).clamp_min(0).to(images.device)


def lpips(
    images: Tensor, others: Tensor, net: str = "alex", *, weights: str | Path | None = None
) -> Tensor:
    """LPIPS by torchmetrics, (B,): sum over layers of mean over places of w (a - b)^2, a and b the images' unit-length features.

    images, others: (B, 3, H, W) in [0, 1], of 32 pixels a side at least; values outside are clipped. net: "alex", "vgg" or "squeeze".
    weights: a folder with torchvision's file of that network (`LPIPS`); by default torch.hub's, to which torchvision downloads it at the
    first call. Raises ImportError, naming the command that installs it, where torchmetrics is missing; FileNotFoundError for a folder
    without the file; OSError where a download fails. Zhang et al., arXiv 1801.03924.
    """
    _check(images, others)
    if net not in LPIPS:
        raise unknown("network of LPIPS", net, LPIPS)
    try:
        from torchmetrics.functional.image import (
            learned_perceptual_image_patch_similarity as distance,
        )
    except ImportError as error:
        raise ImportError("LPIPS comes with torchmetrics: pip install 'datekit[lpips]'") from error
    a, b = (x.float().clamp(0, 1) for x in (images, others))
    with torch.no_grad(), _backbone_of(net, weights):
        return distance(a, b, net_type=net, reduction="none", normalize=True).reshape(-1)


@contextmanager
def _backbone_of(net: str, weights: str | Path | None) -> Iterator[None]:
    """torchvision finds the network's weights in a folder, and nothing else of torch.hub's changes."""
    name = LPIPS[net]
    if weights is None:
        try:
            yield
        except OSError as error:
            raise OSError(
                f"the weights of LPIPS' network could not be downloaded ({error}); put torchvision's {name} into a folder and "
                "give that as weights="
            ) from error
        return
    if not (Path(weights) / name).is_file():
        raise FileNotFoundError(f"{weights} holds no {name}, which torchvision publishes")
    before = torch.hub.get_dir()
    with tempfile.TemporaryDirectory() as hub:
        (Path(hub) / "checkpoints").mkdir()
        (Path(hub) / "checkpoints" / name).symlink_to((Path(weights) / name).resolve())
        torch.hub.set_dir(hub)
        try:
            yield
        finally:
            torch.hub.set_dir(before)


def statements(images: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Of each image of the shapes world the share of its prompt's statements that hold, and whether all do, both (B,), by the oracle."""
    from ..shapes.oracle import judge

    verdicts = judge(images, prompts)
    share = [sum(truth for _, truth in v.statements) / len(v.statements) for v in verdicts]
    return torch.tensor(share, dtype=torch.float64), torch.tensor(
        [float(v.right) for v in verdicts], dtype=torch.float64
    )


def _check(images: Tensor, others: Tensor) -> None:
    if images.shape != others.shape or images.ndim != 4:
        raise ValueError(
            f"images are compared in pairs of one shape (B, 3, H, W), got {tuple(images.shape)} and {tuple(others.shape)}"
        )
    if not (images.isfinite().all() and others.isfinite().all()):
        raise ValueError("an image holds NaN or infinity")
