"""Soft text tokens, their files, and the files that SoftREPA's authors publish."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..errors import unknown
from ..files import read_torch, weights_path, write_whole
from ..registry import Registered
from ..types import Record

BINS = 100  # of the time index
SHIPPED_TOKENS = ("shapes", "shapes-flow")
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
        object.__setattr__(self, "layers", tuple(self.layers))
        if len(set(self.layers)) < len(self.layers):
            raise ValueError(f"soft tokens have each place once, got {self.layers}")
        count = len(self.layers) if self.joint else 1
        wanted = {"tokens": (count, self.tokens.shape[1]), "time": (BINS, count)}
        for name, x in self.numbers.items():
            if x.shape[:-1] != wanted[name] or not x.isfinite().all():
                raise ValueError(
                    f"soft tokens for {self.layers} are finite numbers ({count}, number, width), "
                    f"their time index ({BINS}, {count}, width); {name} has {tuple(x.shape)}"
                )

    @property
    def joint(self) -> bool:
        """Whether they are made for a joint transformer rather than for a U-Net."""
        return isinstance(self.layers[0], int)

    @property
    def numbers(self) -> dict[str, Tensor]:
        """What was learnt, by the name of its field."""
        return {"tokens": self.tokens} | ({} if self.time is None else {"time": self.time})

    @property
    def digest(self) -> str:
        """A fingerprint of the numbers and of the layers."""
        numbers = [x.detach().cpu().float().numpy().tobytes() for x in self.numbers.values()]
        content = b"".join([repr(self.layers).encode(), *numbers])
        return hashlib.blake2b(content, digest_size=8).hexdigest()

    def at(self, t: float) -> Tensor:
        """The tokens of timestep t, (K, m, D); carries gradient.

        The time index is that of t // 10, the last for t = 1000, where a flow starts.
        """
        if self.time is None:
            return self.tokens
        return self.tokens + self.time[min(int(t) // 10, BINS - 1)][:, None]

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file, whole or not at all, and return its path."""
        from safetensors.torch import save_file

        path = Path(path)
        kept = {name: x.detach().cpu().contiguous() for name, x in self.numbers.items()}
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


def shipped_file(name: str) -> Path:
    """Where the soft tokens of a shipped model lie."""
    return weights_path("softrepa") / f"{name}.safetensors"


def load(path: str | Path) -> SoftTokens:
    """Soft tokens in float32 on the CPU. Nothing in a file is executed.

    path: "shapes" or "shapes-flow", which ship; a .safetensors file; the authors' `dc_tokens.pth`
    (K, m, D) or (m, D); or a folder with it and perhaps `dc_t_tokens.pth` (100, K D), the time
    index. The authors' stand in the first K blocks for three dimensions; for two in "down", at
    SDXL's width in "mid", too.
    """
    source, path = str(path), Path(path)
    if source in SHIPPED_TOKENS and not path.exists():
        path = shipped_file(source)
    elif path.name == source and not path.suffix and not path.exists():
        raise unknown("soft tokens", source, SHIPPED_TOKENS, " Or give a file that exists.")
    time = path / "dc_t_tokens.pth"
    path = path / "dc_tokens.pth" if path.is_dir() else path
    if path.suffix == ".safetensors":
        return _load_own(path, source)
    tokens = _load_tensor(path)
    layers = ("down", "mid") if tokens.shape[-1] == 2048 else ("down",)
    if tokens.ndim == 3:
        layers = tuple(range(len(tokens)))
    tokens = tokens.reshape(-1, *tokens.shape[-2:])
    index = _load_tensor(time).unflatten(-1, (len(tokens), -1)) if time.is_file() else None
    return SoftTokens(tokens, index, layers, {"published": True}, source)


def _load_own(path: Path, source: str) -> SoftTokens:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            head, names = json.loads((file.metadata() or {})[HEAD]), file.keys()
            numbers = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, LookupError) as error:
        raise ValueError(f"{path} is no file of soft tokens saved by datekit: {error}") from error
    return SoftTokens(**numbers, layers=head["layers"], config=head["config"], source=source)


def _load_tensor(path: Path) -> Tensor:
    """The one tensor of a file of torch's: a tensor, a parameter, or a table with its weight."""
    # the authors' training saves the time index as such a table
    with torch.serialization.safe_globals([torch.nn.Embedding, set]):
        content = read_torch(path, "file of soft tokens")
    content = content.state_dict() if isinstance(content, torch.nn.Embedding) else content
    if isinstance(content, dict) and len(content) == 1:
        (content,) = content.values()
    if not isinstance(content, Tensor):
        raise ValueError(f"{path} holds a {type(content).__name__} where one tensor was expected")
    return content.detach().float()
