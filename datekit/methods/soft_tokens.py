"""Soft text tokens, their files, and the files that SoftREPA's authors publish."""

from __future__ import annotations

import base64
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
_FORMAT = 1


@dataclass(frozen=True, eq=False, repr=False)
class SoftTokens(Record, Registered, register=True):
    """Learnt text tokens and where in the network they stand (SoftREPA, arXiv 2503.08250).

    tokens: (K, m, D), m tokens for each of K places. time: (100, K, D), of which row b is added to
    every token of a place at timesteps 10 b to 10 b + 9; or None. layers: of a U-Net, some of
    "down", "mid" and "up", with K = 1, as all its cross-attention there takes the same tokens,
    after the start token; of a joint transformer, the K blocks before each of which the tokens are
    prepended, to be dropped after it. config: what is known of their training. source: the file
    they came from. Raises ValueError for shapes that do not go together.
    """

    kind = "tokens"

    tokens: Tensor
    time: Tensor | None = None
    layers: tuple[str, ...] | tuple[int, ...] = ("down",)
    config: dict = field(default_factory=dict)
    source: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", _layers(self.layers))
        where = f" ({self.source})" if self.source else ""
        shape, count = tuple(self.tokens.shape), self.places
        if len(shape) != 3 or shape[0] != count:
            raise ValueError(
                f"soft tokens for {self.layers} must be of shape ({count}, number, width), got "
                f"{shape}{where}"
            )
        if self.time is not None and self.time.shape[:-1] != (BINS, count):
            raise ValueError(
                f"the time index of soft tokens {shape} must be of shape ({BINS}, {count}, width), "
                f"got {tuple(self.time.shape)}{where}"
            )
        for tensor in (self.tokens, self.time):
            if tensor is not None and not tensor.isfinite().all():
                raise ValueError(f"soft tokens hold NaN or infinity{where}")

    @property
    def joint(self) -> bool:
        """Whether they are made for a joint transformer rather than for a U-Net."""
        return isinstance(self.layers[0], int)

    @property
    def places(self) -> int:
        """K: the number of blocks of a joint transformer; 1 for a U-Net."""
        return len(self.layers) if self.joint else 1

    @property
    def num_tokens(self) -> int:
        """m, the number of tokens at each place."""
        return self.tokens.shape[1]

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
        fingerprint = hashlib.blake2b(repr(self.layers).encode(), digest_size=8)
        for value in (self.tokens, self.time):
            if value is not None:
                numbers = value.detach().cpu().float().contiguous().numpy()
                fingerprint.update(numbers.tobytes())
        return fingerprint.hexdigest()

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file, whole or not at all, and return its path.

        Layers and configuration stand in its metadata.
        """
        path, content = Path(path), _pack(self)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda partial: partial.write_bytes(content))
        return path

    def describe(self) -> dict:
        """The tokens as JSON-like data: by name where they ship, else whole, without any file."""
        described = {"soft_tokens": self.source, "digest": self.digest}
        if self.source in SHIPPED_TOKENS:
            return described
        return described | {"data": base64.b64encode(_pack(self)).decode()}

    @classmethod
    def rebuild(cls, described: dict) -> SoftTokens:
        """What `describe` described. Raises ValueError if shipped tokens have changed since."""
        source = described["soft_tokens"]
        if "data" in described:
            return _unpack(base64.b64decode(described["data"]), source)
        tokens = load(source)
        if tokens.digest != described["digest"]:
            raise ValueError(
                f"the soft tokens {source!r} of this installation are not those that were used then"
            )
        return tokens

    def __repr__(self) -> str:
        shape, source = "x".join(map(str, self.tokens.shape)), self.source or "in memory"
        time = self.time is not None
        return f"SoftTokens({source!r}, {shape}, layers={self.layers}, time={time})"


def time_bin(t: float) -> int:
    """Which of 100 bins a timestep falls into: t // 10; the last for t = 1000, a flow's start."""
    return min(max(int(t) // (1000 // BINS), 0), BINS - 1)


def load(path: str | Path, *, layers: Sequence | None = None) -> SoftTokens:
    """Soft tokens in float32 on the CPU. Nothing in a file is executed.

    path: "shapes" or "shapes-flow", which ship; a .safetensors file; a `dc_tokens.pth` of the
    authors, of shape (K, m, D) or (m, D); or a folder with one and, if they published it,
    `dc_t_tokens.pth` of shape (100, K D), the time index. layers: where the tokens of such a file
    stand, by default the first K blocks for three dimensions; for two "down", and "down", "mid" at
    SDXL's width. Raises FileNotFoundError or ValueError, which name the file and what was expected.
    """
    source, path = str(path), Path(path)
    if source in SHIPPED_TOKENS and not path.exists():
        path = shipped_file(source)
        if not path.is_file():
            raise FileNotFoundError(
                f"the soft tokens of {source!r} are missing from this installation ({path}); "
                "install it again"
            )
    time = path / PUBLISHED[1]
    path = path / PUBLISHED[0] if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; soft tokens are a .safetensors file, a {PUBLISHED[0]}, or one "
            f"of {', '.join(SHIPPED_TOKENS)}"
        )
    if path.suffix == ".safetensors":
        return _unpack(path.read_bytes(), source)
    return _load_published(path, time if time.is_file() else None, layers)


def shipped_file(name: str) -> Path:
    """Where the soft tokens of a shipped model lie."""
    return shipped("softrepa") / f"{name}.safetensors"


def _pack(soft: SoftTokens) -> bytes:
    from safetensors.torch import save

    tensors = {"tokens": soft.tokens}
    if soft.time is not None:
        tensors["time"] = soft.time
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    head = {"format": _FORMAT, "layers": list(soft.layers), "config": soft.config}
    return save(tensors, metadata={"datekit_soft_tokens": json.dumps(head)})


def _unpack(content: bytes, source: str | None) -> SoftTokens:
    from safetensors.torch import load as parse

    try:
        tensors = parse(content)
        size = int.from_bytes(content[:8], "little")
        head = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["datekit_soft_tokens"])
        tokens = tensors["tokens"]
    except Exception as error:
        kind = type(error).__name__
        raise ValueError(
            f"{source} is not a file of soft tokens saved by datekit ({kind})"
        ) from error
    if head["format"] != _FORMAT:
        raise ValueError(
            f"{source} was saved in format {head['format']}; this version of datekit reads format "
            f"{_FORMAT}"
        )
    return SoftTokens(tokens, tensors.get("time"), tuple(head["layers"]), head["config"], source)


def _load_published(path: Path, time: Path | None, layers: Sequence | None) -> SoftTokens:
    tokens = _load_tensor(path)
    if tokens.ndim not in (2, 3):
        raise ValueError(
            f"{path} holds a tensor of shape {tuple(tokens.shape)}; soft tokens are (layers, "
            "number, width) for a joint transformer or (number, width) for a U-Net"
        )
    if layers is None and tokens.ndim == 3:
        layers = range(len(tokens))
    elif layers is None:
        layers = ("down", "mid") if tokens.shape[1] == 2048 else ("down",)
    tokens = tokens if tokens.ndim == 3 else tokens[None]
    index, places = None, len(tokens)
    if time is not None:
        index = _load_tensor(time)
        if index.ndim != 2 or len(index) != BINS or index.shape[1] % places:
            raise ValueError(
                f"{time} holds a tensor of shape {tuple(index.shape)}; the time index that goes "
                f"with {path} is of shape ({BINS}, {places} x width)"
            )
        index = index.view(BINS, places, -1)
    return SoftTokens(tokens, index, tuple(layers), {"published": True}, str(path))


def _load_tensor(path: Path) -> Tensor:
    """The one tensor of a file of torch's: a tensor, a parameter, or a table with its weight."""
    try:
        # the authors' training saves the time index as such a table
        with torch.serialization.safe_globals([torch.nn.Embedding, set]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path} is not a file of soft tokens ({type(error).__name__}): only plain tensors are "
            "read from it"
        ) from error
    if isinstance(content, torch.nn.Embedding):
        content = content.weight
    if isinstance(content, dict) and len(content) == 1:
        content = next(iter(content.values()))
    if not isinstance(content, Tensor):
        raise ValueError(f"{path} holds a {type(content).__name__} where one tensor was expected")
    return content.detach().float()


def _layers(layers) -> tuple:
    """Places of a U-Net in their order, or numbers of blocks. Raises ValueError for others."""
    layers = (layers,) if isinstance(layers, str) else tuple(layers)
    if not layers or len(set(layers)) != len(layers):
        raise ValueError(f"layers names the places of soft tokens, each once, got {layers!r}")
    if all(is_whole(layer) and layer >= 0 for layer in layers):
        return tuple(map(int, layers))
    for layer in layers:
        if layer not in PLACES:
            more = " Blocks of a joint transformer are numbers from 0."
            raise unknown("place in a U-Net", layer, PLACES, more)
    return tuple(place for place in PLACES if place in layers)
