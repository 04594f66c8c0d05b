"""FLUX for `custom_pipeline=`, see `datekit.pipelines`."""

from diffusers import FluxPipeline

from datekit.pipelines import guided

DatePipeline = guided(FluxPipeline)
