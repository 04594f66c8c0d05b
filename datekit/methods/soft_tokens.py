"""Soft text tokens, their files, and the files that SoftREPA's authors publish."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..errors import is_whole, unknown
from ..files import shipped, write_whole
from ..registry import Registered
from ..types import Record

BINS = 100  # of the time index
PLACES = ("down", "mid", "up")  # of a U-Net
SHIPPED_TOKENS = ("shapes", "shapes-flow")
PUBLISHED = ("dc_tokens.pth", "dc_t_tokens.pth")
HEAD = "datekit_soft_tokens"  # in the metadata of a file


@dataclass(frozen=True, eq=False, repr=False)
class SoftTokens(Record, Registered, register=True):
    """Learnt text tokens and where in the network they stand (SoftREPA, arXiv 2503.08250).

    tokens: (K, m, D), m tokens for each of K places; time: (100, K, D), of which row b is added to
    every token of a place at timesteps 10 b to 10 b + 9, or None; layers: of a U-Net, some of
    "down", "mid" and "up", where all cross-attention takes the same tokens, K = 1; of a joint
    transformer, the numbers of K blocks; config: what is known of their training; source: the file
    they came from. Raises ValueError for shapes that do not go together.
    """

    kind = "tokens"

    tokens: Tensor
    time: Tensor | None = None
    layers: tuple[str, ...] | tuple[int, ...] = ("down",)
    config: dict = field(default_factory=dict)
    source: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", _in_order(self.layers))
        count, given = self.places, [x for x in (self.tokens, self.time) if x is not None]
        shapes = [tuple(x.shape) for x in given]
        wanted = [(count, self.tokens.shape[1]), (BINS, count)][: len(given)]
        if [s[:-1] for s in shapes] != wanted or not all(x.isfinite().all() for x in given):
            raise ValueError(
                f"soft tokens for {self.layers} are finite numbers ({count}, number, width), their "
                f"time index ({BINS}, {count}, width); {self.source or 'these'} are {shapes}"
            )

    @property
    def joint(self) -> bool:
        """Whether they are made for a joint transformer rather than for a U-Net."""
        return isinstance(self.layers[0], int)

    @property
    def places(self) -> int:
        """K: the number of blocks of a joint transformer; 1 for a U-Net."""
        return len(self.layers) if self.joint else 1

    @property
    def num_parameters(self) -> int:
        """How many numbers were learnt."""
        return self.tokens.numel() + (0 if self.time is None else self.time.numel())

    def time_at(self, t: float) -> Tensor | None:
        """What is added to each token at timestep t, (K, 1, D), or None; carries gradient."""
        return None if self.time is None else self.time[time_bin(t)][:, None]

    @property
    def digest(self) -> str:
        """A fingerprint of the numbers and of the layers."""
        numbers = [x.detach().cpu().float() for x in (self.tokens, self.time) if x is not None]
        content = b"".join([repr(self.layers).encode(), *(x.numpy().tobytes() for x in numbers)])
        return hashlib.blake2b(content, digest_size=8).hexdigest()

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file, whole or not at all, and return its path."""
        from safetensors.torch import save_file

        path, tensors = Path(path), {"tokens": self.tokens, "time": self.time}
        kept = {k: x.detach().cpu().contiguous() for k, x in tensors.items() if x is not None}
        head = {HEAD: json.dumps({"layers": self.layers, "config": self.config})}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda partial: save_file(kept, partial, metadata=head))
        return path

    def describe(self) -> dict:
        """The file that they came from, and their digest."""
        return {"source": self.source, "digest": self.digest}

    @classmethod
    def rebuild(cls, described: dict) -> SoftTokens:
        """The tokens of a description. Raises ValueError where their file has others or none."""
        source = described["source"]
        if source is None:
            raise ValueError("this file used soft tokens that were never saved: give the sampler")
        tokens = load(source)
        if tokens.digest != described["digest"]:
            raise ValueError(f"the soft tokens in {source} are not those that were used then")
        return tokens

    def __repr__(self) -> str:
        source, shape, time = self.source, tuple(self.tokens.shape), self.time is not None
        return f"SoftTokens({source!r}, {shape}, layers={self.layers}, time={time})"


def _in_order(layers: str | Sequence) -> tuple:
    """Places of a U-Net in their order, or numbers of blocks. Raises ValueError for others."""
    layers = (layers,) if isinstance(layers, str) else tuple(layers)
    if layers and all(is_whole(layer) for layer in layers):
        return tuple(map(int, layers))
    for layer in layers or ("",):
        if layer not in PLACES:
            more = " Blocks of a joint transformer are numbers from 0."
            raise unknown("place in a U-Net", layer, PLACES, more)
    return tuple(place for place in PLACES if place in layers)


def time_bin(t: float) -> int:
    """Which of 100 bins a timestep falls into: t // 10; the last for t = 1000, a flow's start."""
    return min(max(int(t) // (1000 // BINS), 0), BINS - 1)


def shipped_file(name: str) -> Path:
    """Where the soft tokens of a shipped model lie."""
    return shipped("softrepa") / f"{name}.safetensors"


def load(path: str | Path, *, layers: Sequence | None = None) -> SoftTokens:
    """Soft tokens in float32 on the CPU. Nothing in a file is executed.

    path: "shapes" or "shapes-flow", which ship; a .safetensors file; the authors' `dc_tokens.pth`
    (K, m, D) or (m, D); or a folder with it and perhaps `dc_t_tokens.pth` (100, K D), the time
    index. layers: where the authors' tokens stand, by default the first K blocks for three
    dimensions; for two "down", and "down", "mid" at SDXL's width.
    """
    source, path = str(path), Path(path)
    if source in SHIPPED_TOKENS and not path.exists():
        path = shipped_file(source)
    time = path / PUBLISHED[1]
    path = path / PUBLISHED[0] if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; soft tokens ship for {SHIPPED_TOKENS}")
    if path.suffix == ".safetensors":
        return _load_own(path, source)
    tokens, index = _load_tensor(path), _load_tensor(time) if time.is_file() else None
    if layers is None and tokens.ndim == 3:
        layers = range(len(tokens))
    elif layers is None:
        layers = ("down", "mid") if tokens.shape[-1] == 2048 else ("down",)
    tokens = tokens if tokens.ndim == 3 else tokens[None]
    index = None if index is None else index.unflatten(-1, (len(tokens), -1))
    return SoftTokens(tokens, index, tuple(layers), {"published": True}, source)


def _load_own(path: Path, source: str) -> SoftTokens:
    from safetensors import safe_open
    from safetensors.torch import load_file

    with safe_open(path, "pt") as file:
        about = file.metadata() or {}
    if HEAD not in about:
        raise ValueError(f"{path} is no file of soft tokens saved by datekit")
    head = json.loads(about[HEAD])
    return SoftTokens(
        **load_file(path), layers=head["layers"], config=head["config"], source=source
    )


def _load_tensor(path: Path) -> Tensor:
    """The one tensor of a file of torch's: a tensor, a parameter, or a table with its weight."""
    # the authors' training saves the time index as such a table
    with torch.serialization.safe_globals([torch.nn.Embedding, set]):
        content = torch.load(path, map_location="cpu", weights_only=True)
    content = content.state_dict() if isinstance(content, torch.nn.Embedding) else content
    if isinstance(content, dict) and len(content) == 1:
        (content,) = content.values()
    if not isinstance(content, Tensor):
        raise ValueError(f"{path} holds a {type(content).__name__} where one tensor was expected")
    return content.detach().float()
