"""Z-Image for `custom_pipeline=`, see `datekit.pipelines`."""

from diffusers import ZImagePipeline

from datekit.pipelines import guided

DatePipeline = guided(ZImagePipeline)
