"""Two small CLIPs: one that guides and, of another architecture and seed, one that only judges."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from datekit.shapes.captions import caption, families, parse
from datekit.shapes.renderer import SIZE, render
from datekit.shapes.world import Scene, place, sample_kinds, sample_scenes
from studies.training import autoencoder, tokenizer
from studies.training.loop import Draw, fit, reading, write_atomically
from studies.training.negatives import hard_negatives, twin

# The ResNet of the first CLIP, in two sizes. Small towers of other families (EfficientNet,
# ConvNeXt, BYOB) were tried and learn relations too slowly.
VISION = {
    "clip": {"layers": [1, 1, 1, 1], "width": 8, "head_width": 64},
    "clip-heldout": {"layers": [1, 2, 2, 1], "width": 8, "head_width": 32},
}
EMBEDDING = {"clip": 96, "clip-heldout": 64}
POOL = 6_000  # scenes with a vague image
BATCH = 64
PROBES = 256  # scenes that measure quality while it trains
NEGATIVES = 2  # captions, of each image
NORMALISE = {"mean": [0.5] * 3, "std": [0.5] * 3}


def config(name: str) -> dict:
    """open_clip's configuration of one of the two models."""
    vision = {**VISION[name], "image_size": SIZE}
    text = {
        "context_length": tokenizer.WINDOW,
        "vocab_size": len(tokenizer.build()),
        "width": 96,
        "heads": 4,
        "layers": 2,
        "hf_tokenizer_name": ".",
        "tokenizer_kwargs": {"clean": "lower"},
    }
    model = {"embed_dim": EMBEDDING[name], "vision_cfg": vision, "text_cfg": text}
    return {
        "model_cfg": model,
        "preprocess_cfg": {**NORMALISE, "interpolation": "bilinear", "resize_mode": "squash"},
    }


def build(name: str):
    """An untrained model."""
    from open_clip.model import CLIP

    model_cfg = copy.deepcopy(config(name)["model_cfg"])
    return CLIP(model_cfg["embed_dim"], model_cfg["vision_cfg"], model_cfg["text_cfg"])


class Vague:
    """Scenes with blurry images, decoded from spoilt latents.

    They look as x0bar does early in sampling.
    """

    def __init__(self, n: int, vae, seed: int):
        self.scenes = sample_scenes(n, seed)
        draw = Draw(seed, n)
        parts = [self.scenes[i : i + 256] for i in range(0, n, 256)]
        latents = torch.cat([autoencoder.encode(vae, render(part)) for part in parts])
        spoilt = fade(
            blur(latents, 1.5 * torch.rand(n, generator=draw.torch)), latents.mean(0), draw
        )
        spoilt += 0.15 * latents.std() * torch.randn(latents.shape, generator=draw.torch)
        self.images = (autoencoder.decode(vae, spoilt).clamp(0, 1) * 255).round().byte()

    def sample(self, n: int, draw: Draw) -> tuple[list[Scene], torch.Tensor]:
        """n scenes with their images (n, 3, H, W)."""
        index = draw.numpy.choice(len(self.scenes), n, replace=len(self.scenes) < n)
        return [self.scenes[i] for i in index], self.images[index].float() / 255


def augment(images: torch.Tensor, draw: Draw, strength: float) -> torch.Tensor:
    """Blur, fading towards the mean colour and noise, each on some of the images (B, 3, H, W)."""
    n = len(images)
    sigma = (
        3
        * strength
        * torch.rand(n, generator=draw.torch)
        * (torch.rand(n, generator=draw.torch) < 0.5)
    )
    views = fade(blur(images, sigma), images.mean((2, 3), keepdim=True), draw, strength)
    noise = 0.1 * strength * torch.rand(n, 1, 1, 1, generator=draw.torch)
    return views + noise * torch.randn(views.shape, generator=draw.torch)


def blur(images: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Gaussian blur of each image (B, C, H, W) by its own sigma (B,) in pixels."""
    b, c, h, w = images.shape
    radius = min(6, h // 2 - 1)
    ticks = torch.arange(-radius, radius + 1.0)
    kernel = torch.softmax(
        -(ticks**2) / (2 * sigma[:, None].clamp(min=0.05) ** 2), dim=1
    ).repeat_interleave(c, 0)
    x = F.pad(images.reshape(1, b * c, h, w), (radius,) * 4, mode="replicate")
    x = F.conv2d(x, kernel[:, None, None, :], groups=b * c)
    return F.conv2d(x, kernel[:, None, :, None], groups=b * c).reshape(b, c, h, w)


def fade(
    images: torch.Tensor, towards: torch.Tensor, draw: Draw, strength: float = 1.0
) -> torch.Tensor:
    """Half of the images (B, ...) pulled by up to 60 % of `strength` towards a ground."""
    share = torch.rand(len(images), generator=draw.torch) * (
        torch.rand(len(images), generator=draw.torch) < 0.5
    )
    return torch.lerp(
        images, towards.expand_as(images), 0.6 * strength * share[:, None, None, None]
    )


def train(name: str, path: Path, vae, *, steps: int, seed: int, device: str, pool: int = POOL):
    """Trains one of the two models and returns it with its log."""
    torch.manual_seed(seed)
    model = build(name).to(device)
    vague = cache(lambda: Vague(pool, vae, seed))  # made when the first step asks

    def loss(draw: Draw) -> tuple[torch.Tensor, dict]:
        # Sharp images first: from blurry ones alone, learning what binds to what takes many
        # times longer.
        strength = min(1.0, max(0.0, 3 * draw.step / steps - 1))
        scenes, images = vague().sample(round(strength * BATCH / 3), draw)
        fresh = [
            place(sample_kinds(draw.numpy), draw.numpy) for _ in range((BATCH - len(scenes)) // 2)
        ]
        fresh += [twin(scene, draw.numpy) for scene in fresh]
        views = augment(torch.cat([images, render(fresh)]), draw, strength)
        captions = Captions.draw(scenes + fresh, draw, reading(draw.step, steps))
        return contrast(model.train(), captions, views)

    def probe() -> dict:
        return accuracy(model, PROBES, seed=1)

    log = fit(
        model,
        loss,
        steps=steps,
        peak=2e-3,
        path=path,
        seed=seed,
        probe=probe,
        probe_every=max(100, steps // 8),
    )
    return model.eval().requires_grad_(False), log


def tokens(texts: list[str], device) -> torch.Tensor:
    """Tokens (B, 16)."""
    return _tokenizer()(texts, padding="max_length", return_tensors="pt").input_ids.to(device)


_tokenizer = cache(tokenizer.build)


@dataclass(frozen=True)
class Captions:
    """What the pictures of a batch are compared with.

    texts: a true caption of each, then the hard negatives of each, `negatives` a picture.
    also_true: (B, B) bool, captions of others that happen to be true of a picture too.
    """

    texts: list[str]
    also_true: torch.Tensor

    @classmethod
    def draw(
        cls, scenes: list[Scene], draw: Draw, order: float, negatives: int = NEGATIVES
    ) -> Captions:
        """Captions of scenes; order: as `reading` gives it."""
        texts = [caption_of(scene, draw.numpy, order) for scene in scenes]
        near = [
            hard_negatives(text, scene.things, negatives, draw.numpy)
            for text, scene in zip(texts, scenes, strict=True)
        ]
        wrong = [text for row in near for text in row]
        claims = [parse(text) for text in texts]
        also_true = torch.tensor(
            [[claim.hold(scene.things) for claim in claims] for scene in scenes]
        )
        return cls(texts + wrong, also_true & ~torch.eye(len(texts), dtype=torch.bool))


def contrast(model, captions: Captions, images: torch.Tensor) -> tuple[torch.Tensor, dict]:
    """InfoNCE over the captions of the batch, and each image's hard negatives.

    Captions that happen to be true of another image do not count against it.
    """
    b, device = len(images), model.logit_scale.device
    z = model.encode_image(images.to(device) * 2 - 1, normalize=True)
    y = model.encode_text(tokens(captions.texts, device), normalize=True)
    scale = model.logit_scale.clamp(max=4.0).exp()
    logits = (scale * z @ y[:b].T).masked_fill(captions.also_true.to(device), -torch.inf)
    hard = scale * torch.einsum("bd,bkd->bk", z, y[b:].view(b, -1, z.shape[1]))
    target = torch.arange(b, device=device)
    both = F.cross_entropy(torch.cat([logits, hard], 1), target) + F.cross_entropy(logits.T, target)
    return both / 2, {"hard": (logits.diagonal()[:, None] > hard).all(1).float().mean().item()}


def caption_of(scene: Scene, rng: np.random.Generator, order: float) -> str:
    """A true caption of any family that fits; order: as `reading` gives it."""
    options = families(scene)
    weights = np.array([3.0 if family == "position" else 1.0 for family in options])
    return caption(scene, options[rng.choice(len(options), p=weights / weights.sum())], rng, order)


@torch.no_grad()
def accuracy(model, n: int, seed: int, negatives: int = 7) -> dict:
    """Share of held-out pairs whose true position caption beats `negatives` hard ones.

    The images are sharp, and blurred by 1.5 and 3 pixels.
    """
    model.eval()
    draw, device = Draw(seed, n), model.logit_scale.device
    scenes = sample_scenes(n, seed + 1000, "heldout")
    texts = [caption(scene, "position", draw.numpy) for scene in scenes]
    choices = [
        [t, *hard_negatives(t, s.things, negatives, draw.numpy)]
        for t, s in zip(texts, scenes, strict=True)
    ]
    y = model.encode_text(tokens([t for row in choices for t in row], device), normalize=True).view(
        n, negatives + 1, -1
    )
    images = render(scenes)
    out = {}
    for name, sigma in (("sharp", 0.0), ("blur 1.5", 1.5), ("blur 3", 3.0)):
        z = model.encode_image(
            blur(images, torch.full((n,), sigma)).to(device) * 2 - 1, normalize=True
        )
        out[name] = (torch.einsum("bd,bkd->bk", z, y).argmax(1) == 0).float().mean().item()
    return out


def load(folder: Path):
    """A trained model, through open_clip's own loader."""
    import open_clip

    return open_clip.create_model(f"local-dir:{folder}").eval().requires_grad_(False)


def save(model, name: str, folder: Path) -> None:
    """A folder for open_clip's `local-dir:` loader.

    It holds the configuration, weights in half precision, and the tokenizer.
    """
    from safetensors.torch import save_file

    state = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    write_atomically(
        folder / "open_clip_model.safetensors", lambda partial: save_file(state, partial)
    )
    write_atomically(
        folder / "open_clip_config.json",
        lambda partial: partial.write_text(json.dumps(config(name), indent=2)),
    )
    tokenizer.save(folder)
