"""The flow-matching sibling of the denoiser.

It is a small MMDiT in a `StableDiffusion3Pipeline`, on the same latents and captions.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)

from datekit.shapes.captions import prompts
from studies.training import denoiser
from studies.training.latents import Latents
from studies.training.loop import Draw, Log, fit

BATCH = 32
SHIFT = 3.0  # of the noise levels towards noise, where the layout is decided, as in SD 3
SILENT = 256  # zero embeddings that the pipeline puts where the missing T5 encoder would speak
SILENT_EVERY = (
    50  # steps with so many of them; the others have one, which is quicker and must mean the same
)
HEADS, HEAD_WIDTH, LAYERS = 4, 32, 6


class Flow(torch.nn.Module):
    """MMDiT and two frozen text encoders, both from the text tower of the guide."""

    def __init__(self, clip: torch.nn.Module):
        super().__init__()
        # Stable Diffusion 3 reads the state before an encoder's last layer. The second encoder is
        # the tower as it is. The first has one more layer that adds nothing, so that its state
        # before the last is the tower's own last one.
        self.text, self.text_2 = (
            denoiser.projected_encoder_of(clip, spare_layers=1),
            denoiser.projected_encoder_of(clip),
        )
        self.transformer = SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=LAYERS,
            attention_head_dim=HEAD_WIDTH,
            num_attention_heads=HEADS,
            joint_attention_dim=2 * denoiser.WIDTH,
            caption_projection_dim=HEADS * HEAD_WIDTH,
            pooled_projection_dim=self.text.config.projection_dim
            + self.text_2.config.projection_dim,
            pos_embed_max_size=16,
            qk_norm="rms_norm",
        )
        self.transformer.context_embedder.weight.data /= (
            5  # text states before the last norm are about so large
        )
        for name, module in self.transformer.named_modules():  # each block starts as the identity
            if name.endswith(
                ("norm1.linear", "norm1_context.linear", "norm_out.linear", "proj_out")
            ) and hasattr(module, "weight"):
                torch.nn.init.zeros_(module.weight)
                torch.nn.init.zeros_(module.bias)

    def encode(self, ids: torch.Tensor, silent: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Sequence (B, 16 + silent, 192) and pooled embedding (B, 192) of tokens.

        They are put together as the pipeline does it.
        """
        with torch.no_grad():
            first, second = (
                text(ids, output_hidden_states=True) for text in (self.text, self.text_2)
            )
            sequence = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1)
            return F.pad(sequence, (0, 0, 0, silent)), torch.cat(
                [first.text_embeds, second.text_embeds], -1
            )

    def forward(
        self, xt: torch.Tensor, t: torch.Tensor, ids: torch.Tensor, silent: int = 1
    ) -> torch.Tensor:
        """Predicted velocity eps - x0, (B, 4, 16, 16)."""
        sequence, pooled = self.encode(ids, silent)
        return self.transformer(
            xt, encoder_hidden_states=sequence, pooled_projections=pooled, timestep=t
        ).sample


build = Flow


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Stable Diffusion 3's schedule."""
    return FlowMatchEulerDiscreteScheduler(shift=SHIFT)


def pipeline(model: Flow, vae: AutoencoderKL) -> StableDiffusion3Pipeline:
    """The pipeline that ships."""
    tokens, vae = denoiser.tokenizer_of_model(), copy.deepcopy(vae)
    vae.register_to_config(shift_factor=0.0)  # which this pipeline reads
    pipe = StableDiffusion3Pipeline(
        transformer=model.transformer,
        scheduler=scheduler(),
        vae=vae,
        text_encoder=model.text,
        tokenizer=tokens,
        text_encoder_2=model.text_2,
        tokenizer_2=tokens,
        text_encoder_3=None,
        tokenizer_3=None,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def train(
    path: Path,
    vae: AutoencoderKL,
    start: Flow,
    *,
    steps: int,
    seed: int,
    device: str,
    peak: float,
    garbling: Mapping[str, float] | None = None,
    scenes: int = denoiser.SCENES,
    probes: int = 100,
) -> tuple[Flow, Log]:
    """Trains the transformer of `start` by flow matching and returns the moving average.

    With sigma = SHIFT u / (1 + (SHIFT - 1) u), u uniform: xt = (1 - sigma) x0 + sigma eps, and the
    target is eps - x0.
    """
    torch.manual_seed(seed)
    model = copy.deepcopy(start).requires_grad_(False).train().to(device)
    model.transformer.requires_grad_(True)
    ema = copy.deepcopy(model).eval().requires_grad_(False)
    data = Latents(vae, scenes, seed)

    def loss(draw: Draw) -> tuple[torch.Tensor, dict]:
        x0, captions = data.draw(BATCH, draw, garbling=garbling)
        ids, noise = denoiser.tokens(captions), torch.randn(x0.shape, generator=draw.torch)
        u = torch.rand(BATCH, generator=draw.torch)
        sigma = SHIFT * u / (1 + (SHIFT - 1) * u)
        xt = torch.lerp(x0, noise, sigma.view(-1, 1, 1, 1))
        silent = SILENT if draw.step % SILENT_EVERY == 0 else 1
        v = model(xt.to(device), 1000 * sigma.to(device), ids.to(device), silent)
        return F.mse_loss(v, (noise - x0).to(device)), {}

    def probe() -> dict:
        texts = prompts(n=probes, part="tune")
        return {
            "oracle": denoiser.right(
                pipeline(ema, vae), texts, guidance_scale=3.0, num_steps=20, max_sequence_length=1
            )
        }

    log = fit(model, loss, steps=steps, peak=peak, path=path, seed=seed, ema=ema, probe=probe)
    return ema, log
