"""Stable Diffusion 3 for `custom_pipeline=`, see `datekit.pipelines`."""

from diffusers import StableDiffusion3Pipeline

from datekit.pipelines import guided

DatePipeline = guided(StableDiffusion3Pipeline)
