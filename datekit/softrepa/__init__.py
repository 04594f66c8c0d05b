"""SoftREPA: soft text tokens learnt by contrast, everything else frozen (arXiv 2503.08250).

from datekit import softrepa

pairs = softrepa.read_pairs("captions_train2017.json", images="train2017")  # or Pairs(...)
tokens = softrepa.train(backbone, pairs, steps=500)
tokens.save("tokens.safetensors")  # softrepa.load reads it, and the authors' files
dk.Sampler(backbone, dk.SoftREPA(tokens) + dk.DATE(reward))
"""

from ..methods.soft_tokens import SoftTokens, load
from .data import Pairs, read_pairs
from .loss import Contrast, add_noise, denoising_errors
from .plan import Batch, Plan
from .training import TokenTrainer, train

__all__ = ["Batch", "Contrast", "Pairs", "Plan", "SoftTokens", "TokenTrainer", "denoising_errors"]
__all__ += ["add_noise", "load", "read_pairs", "train"]
