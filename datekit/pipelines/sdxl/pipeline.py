"""Stable Diffusion XL for `custom_pipeline=`, see `datekit.pipelines`."""

from diffusers import StableDiffusionXLPipeline

from datekit.pipelines import guided

DatePipeline = guided(StableDiffusionXLPipeline)
