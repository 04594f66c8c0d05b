"""SoftREPA: soft text tokens learnt by contrast, everything else frozen (arXiv 2503.08250).

from datekit import softrepa

pairs = softrepa.read_pairs("captions_train2017.json", images="train2017")  # or Pairs(...)
tokens = softrepa.train(backbone, pairs, steps=500)
tokens.save("tokens.safetensors")  # softrepa.load reads it, and the authors' files
dk.Sampler(backbone, dk.SoftREPA(tokens) + dk.DATE(reward))
"""

from ..lazy import attach
from ..methods.soft_tokens import SoftTokens, load

_NAMES = {
    "data": ("Pairs", "read_pairs"),
    "loss": ("Contrast", "denoising_errors", "noised"),
    "plan": ("Batch", "Plan"),
    "training": ("TokenTrainer", "train"),
}
__getattr__, __dir__, __all__ = attach(__name__, _NAMES, "SoftTokens", "load")
