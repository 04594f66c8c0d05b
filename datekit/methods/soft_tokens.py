"""Soft text tokens and their files: datekit's own (safetensors, configuration inside) and those that SoftREPA's authors publish."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from ..errors import unknown
from ..files import write_whole

BINS = 100  # of the time index
PLACES = ("down", "mid", "up")  # of a U-Net
SHIPPED_TOKENS = ("shapes", "shapes-flow")
PUBLISHED = ("dc_tokens.pth", "dc_t_tokens.pth")
_FORMAT = 1


@dataclass(frozen=True, eq=False)
class SoftTokens:
    """Learnt text tokens: which vectors, and where in the network they stand (SoftREPA, arXiv 2503.08250).

    tokens: (K, m, D), m tokens for each of K places; time: (100, K, D) added to every token of a place at timesteps 10 b to 10 b + 9, or
    None; layers: of a U-Net some of "down", "mid", "up", with K = 1 (one set for all its cross-attention there, after the start token),
    of a joint transformer the K blocks before each of which the tokens are prepended, to be dropped after it. config: what is
    known of their training; source: the file they came from. Raises ValueError for shapes that do not go together.
    """

    tokens: Tensor
    time: Tensor | None = None
    layers: tuple[str, ...] | tuple[int, ...] = ("down",)
    config: dict = field(default_factory=dict)
    source: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", _layers(self.layers))
        where, shape, count = (
            f" ({self.source})" if self.source else "",
            tuple(self.tokens.shape),
            self.places,
        )
        if self.tokens.ndim != 3 or shape[0] != count:
            raise ValueError(
                f"soft tokens for {self.layers} must be of shape ({count}, number, width), got {shape}{where}"
            )
        if self.time is not None and (
            self.time.ndim != 3 or tuple(self.time.shape[:2]) != (BINS, count)
        ):
            raise ValueError(
                f"the time index of soft tokens {shape} must be of shape ({BINS}, {count}, width), got "
                f"{tuple(self.time.shape)}{where}"
            )
        for what, value in (("tokens", self.tokens), ("the time index", self.time)):
            if value is not None and not value.isfinite().all():
                raise ValueError(f"{what} hold NaN or infinity{where}")

    @property
    def joint(self) -> bool:
        """Whether they are made for a joint transformer rather than for a U-Net."""
        return isinstance(self.layers[0], int)

    @property
    def places(self) -> int:
        """K: the blocks of a joint transformer; a U-Net has one set."""
        return len(self.layers) if self.joint else 1

    @property
    def num_tokens(self) -> int:
        """m, tokens at each place."""
        return self.tokens.shape[1]

    @property
    def num_parameters(self) -> int:
        """Numbers that were learnt."""
        return self.tokens.numel() + (0 if self.time is None else self.time.numel())

    def time_at(self, t: float) -> Tensor | None:
        """What is added to each token at timestep t, (K, 1, D), or None; carries gradient."""
        return None if self.time is None else self.time[time_bin(t)][:, None]

    def replace(self, **changes) -> SoftTokens:
        """A copy with some fields changed."""
        return replace(self, **changes)

    @property
    def digest(self) -> str:
        """A fingerprint of the numbers and of the layers."""
        found = hashlib.blake2b(repr(self.layers).encode(), digest_size=8)
        for value in (self.tokens, self.time):
            found.update(
                b""
                if value is None
                else value.detach().cpu().float().contiguous().numpy().tobytes()
            )
        return found.hexdigest()

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file with layers and configuration in its metadata; whole or not at all. Returns the path."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(
            path, lambda partial: (partial.write_bytes(_packed(self)), partial.chmod(0o644))
        )
        return path

    def describe(self) -> dict:
        """As JSON-like data: by name where they ship, else whole, so that a saved run needs no other file."""
        known = {"soft_tokens": self.source, "digest": self.digest}
        return (
            known
            if self.source in SHIPPED_TOKENS
            else known | {"data": base64.b64encode(_packed(self)).decode()}
        )

    @classmethod
    def rebuild(cls, described: dict) -> SoftTokens:
        """What `describe` described. Raises ValueError if tokens that ship have other numbers by now."""
        source = described["soft_tokens"]
        if "data" in described:
            return _unpacked(base64.b64decode(described["data"]), source)
        found = load(source)
        if found.digest != described["digest"]:
            raise ValueError(
                f"the soft tokens {source!r} of this installation are not those that were used then"
            )
        return found

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.tokens.shape))
        return f"SoftTokens({self.source or 'in memory'!r}, {shape}, layers={self.layers}, time={self.time is not None})"


def time_bin(t: float) -> int:
    """Which of 100 bins a timestep falls into: t // 10, the last for t = 1000, where flows start."""
    return min(max(int(t) // (1000 // BINS), 0), BINS - 1)


def load(
    path: str | Path, *, time: str | Path | None = None, layers: Sequence | None = None
) -> SoftTokens:
    """Soft tokens from the name of a shipped model, a file of datekit's, or the files that the authors publish; on the CPU, float32.

    path: "shapes", "shapes-flow", a .safetensors file, `dc_tokens.pth` of shape (K, m, D) or (m, D), or a folder with `dc_tokens.pth` and,
    where there is one, `dc_t_tokens.pth` of shape (100, K D). time: that second file. layers: where a file of the authors' does not say:
    the first K blocks for three dimensions; for two "down", and "down", "mid" at SDXL's width. Nothing in a file is executed.
    Raises FileNotFoundError or ValueError, naming the file and the shape that was expected.
    """
    if str(path) in SHIPPED_TOKENS and not Path(path).exists():
        path, source = shipped_file(str(path)), str(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"the soft tokens of {source!r} are missing from this installation ({path}); install it again, or run "
                f"datekit softrepa sweep --model {source} --out results.json"
            )
    else:
        path, source = Path(path), str(path)
    if path.is_dir():
        folder = path
        path = folder / PUBLISHED[0]
        time = folder / PUBLISHED[1] if time is None and (folder / PUBLISHED[1]).is_file() else time
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; soft tokens are a .safetensors file, a {PUBLISHED[0]}, or one of "
            f"{', '.join(SHIPPED_TOKENS)}"
        )
    if path.suffix == ".safetensors":
        return _unpacked(path.read_bytes(), source)
    return _published(path, None if time is None else Path(time), layers)


def shipped_file(name: str) -> Path:
    """Where the soft tokens of a shipped model lie."""
    return Path(__file__).parent / "shapes" / "weights" / "softrepa" / f"{name}.safetensors"


def _packed(soft: SoftTokens) -> bytes:
    from safetensors.torch import save

    tensors = {
        name: value.detach().cpu().contiguous()
        for name, value in (("tokens", soft.tokens), ("time", soft.time))
        if value is not None
    }
    head = {"format": _FORMAT, "layers": list(soft.layers), "config": soft.config}
    return save(tensors, metadata={"datekit_soft_tokens": json.dumps(head)})


def _unpacked(content: bytes, source: str | None) -> SoftTokens:
    from safetensors.torch import load as parse

    try:
        tensors = parse(content)
        size = int.from_bytes(content[:8], "little")
        head = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["datekit_soft_tokens"])
        tokens = tensors["tokens"]
    except Exception as error:
        raise ValueError(
            f"{source} is not a file of soft tokens saved by datekit ({type(error).__name__})"
        ) from error
    if head["format"] != _FORMAT:
        raise ValueError(
            f"{source} was saved in format {head['format']}; this version of datekit reads format {_FORMAT}"
        )
    return SoftTokens(tokens, tensors.get("time"), tuple(head["layers"]), head["config"], source)


def _published(path: Path, time: Path | None, layers: Sequence | None) -> SoftTokens:
    tokens = _plain(path)
    if tokens.ndim not in (2, 3):
        raise ValueError(
            f"{path} holds a tensor of shape {tuple(tokens.shape)}; soft tokens are (layers, number, width) for a joint "
            "transformer or (number, width) for a U-Net"
        )
    if layers is None:
        layers = (
            tuple(range(len(tokens)))
            if tokens.ndim == 3
            else ("down", "mid")
            if tokens.shape[1] == 2048
            else ("down",)
        )
    tokens = tokens if tokens.ndim == 3 else tokens[None]
    index = None if time is None else _plain(time)
    if index is not None:
        places = len(tokens)
        if index.ndim != 2 or len(index) != BINS or index.shape[1] % places:
            raise ValueError(
                f"{time} holds a tensor of shape {tuple(index.shape)}; the time index that goes with {path} is of shape "
                f"({BINS}, {places} x width)"
            )
        index = index.view(BINS, places, -1)
    return SoftTokens(tokens, index, tuple(layers), {"published": True}, str(path))


def _plain(path: Path) -> Tensor:
    """The one tensor of a file of torch's: a tensor, a parameter, or a table with its weight. Only plain tensors are read."""
    try:
        with torch.serialization.safe_globals(
            [torch.nn.Embedding, set]
        ):  # as their training saves the time index
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(
            f"{path} is not a file of soft tokens ({type(error).__name__}): only plain tensors are read from it"
        ) from error
    if isinstance(content, torch.nn.Embedding):
        content = content.weight
    if isinstance(content, dict) and len(content) == 1:
        content = next(iter(content.values()))
    if not isinstance(content, Tensor):
        raise ValueError(f"{path} holds a {type(content).__name__} where one tensor was expected")
    return content.detach().float()


def _layers(layers) -> tuple:
    layers = (layers,) if isinstance(layers, str) else tuple(layers)
    if not layers or len(set(layers)) != len(layers):
        raise ValueError(f"layers names the places of soft tokens, each once, got {layers!r}")
    if all(
        isinstance(layer, int) and not isinstance(layer, bool) and layer >= 0 for layer in layers
    ):
        return layers
    for layer in layers:
        if layer not in PLACES:
            raise unknown(
                "place in a U-Net",
                layer,
                PLACES,
                " Blocks of a joint transformer are numbers from 0.",
            )
    return tuple(place for place in PLACES if place in layers)
