"""A flow model whose right answers are formulas."""

from __future__ import annotations

from diffusers import FlowMatchEulerDiscreteScheduler
from torch.nn.functional import avg_pool2d

from datekit.backbones import Backbone, GaussianBackbone, Recommended


class FlowGaussian(Backbone):
    """p(x0 | c) = N(mu(c), diag v), xt = (1 - sigma) x0 + sigma eps; the network says eps - x0."""

    name, recommended = "flow gaussian", Recommended(num_steps=6, guidance_scale=1.0, solver="own")
    factor = 4

    def __init__(self):
        self.model, self.scheduler = GaussianBackbone(1), FlowMatchEulerDiscreteScheduler(shift=2.0)
        self.device, self.dtype = self.model.device, self.model.dtype
        self.variance = self.model._v[0].view(3, 8, 8)

    def encode(self, prompts, *, negative=False):
        return self.model.encode(prompts, negative=negative)

    def encode_images(self, images):
        return ((avg_pool2d(images, 4) - 0.5) / 0.3).to(self.dtype)

    def decode(self, latents):
        return self.model.decode(latents)

    def latent_shape(self, height=None, width=None):
        return self.model.latent_shape(height, width)

    def slope(self, sigma):
        """d x0bar / d xt, diagonal."""
        return (1 - sigma) * self.variance / ((1 - sigma) ** 2 * self.variance + sigma**2)

    def x0bar(self, xt, sigma, cond):
        mean = self.model.means(cond).view(-1, 3, 8, 8)
        return mean + self.slope(sigma) * (xt - (1 - sigma) * mean)

    def predict(self, xt, t, cond):
        return (xt - self.x0bar(xt, t / 1000, cond)) / (t / 1000)
