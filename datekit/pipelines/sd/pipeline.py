"""Stable Diffusion for `custom_pipeline=`, see `datekit.pipelines`."""

from diffusers import StableDiffusionPipeline

from datekit.pipelines import guided

DatePipeline = guided(StableDiffusionPipeline)
