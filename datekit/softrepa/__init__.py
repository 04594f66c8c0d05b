"""SoftREPA: soft text tokens learnt by contrast, everything else frozen (arXiv 2503.08250).

from datekit import softrepa

scenes, rng = dk.shapes.sample_scenes(2000, seed=0), np.random.default_rng(0)
captions = [dk.shapes.caption(scene, dk.shapes.families(scene)[-1], rng) for scene in scenes]
pairs = softrepa.Pairs(dk.shapes.render(scenes), captions)  # or read_pairs("captions.json")
tokens = softrepa.train(dk.load("shapes"), pairs, steps=500)
tokens.save("tokens.safetensors")  # softrepa.load reads it, and the authors' files
dk.Sampler(backbone, dk.SoftREPA(tokens) + dk.DATE(reward))
"""

from ..lazy import attach
from ..methods.soft_tokens import SoftTokens, load

_NAMES = {
    "data": ("Pairs", "read_pairs"),
    "loss": ("Contrast", "denoising_errors", "level", "target"),
    "plan": ("Batch", "Plan"),
    "training": ("TokenTrainer", "train"),
}
__getattr__, __dir__, __all__ = attach(__name__, _NAMES, "SoftTokens", "load")
