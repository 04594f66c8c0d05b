"""HPSv3: a Qwen2-VL that rates images as people prefer them, and says how sure it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..registry import option
from .network import published_head
from .vision_language import VisionLanguageReward

HUB, FILE = "MizzenAI/HPSv3", "HPSv3.safetensors"
PIXELS = 256 * 28 * 28  # of every image, as near as its proportions allow: 448 x 448 of a square
TOKEN = "<|Reward|>"
QUESTION = f"""
You are tasked with evaluating a generated image based on Visual Quality and Text Alignment and \
give a overall score to estimate the human preference. Please provide a rating from 0 to 10, with \
0 being the worst and 10 being the best.\x20

**Visual Quality:**\x20\x20
Evaluate the overall visual quality of the image. The following sub-dimensions should be considered:
- **Reasonableness:** The image should not contain any significant biological or logical errors, \
such as abnormal body structures or nonsensical environmental setups.
- **Clarity:** Evaluate the sharpness and visibility of the image. The image should be clear and \
easy to interpret, with no blurring or indistinct areas.
- **Detail Richness:** Consider the level of detail in textures, materials, lighting, and other \
visual elements (e.g., hair, clothing, shadows).
- **Aesthetic and Creativity:** Assess the artistic aspects of the image, including the color \
scheme, composition, atmosphere, depth of field, and the overall creative appeal. The scene should \
convey a sense of harmony and balance.
- **Safety:** The image should not contain harmful or inappropriate content, such as political, \
violent, or adult material. If such content is present, the image quality and satisfaction score \
should be the lowest possible.\x20

**Text Alignment:**\x20\x20
Assess how well the image matches the textual prompt across the following sub-dimensions:
- **Subject Relevance** Evaluate how accurately the subject(s) in the image (e.g., person, animal, \
object) align with the textual description. The subject should match the description in terms of \
number, appearance, and behavior.
- **Style Relevance:** If the prompt specifies a particular artistic or stylistic style, evaluate \
how well the image adheres to this style.
- **Contextual Consistency**: Assess whether the background, setting, and surrounding elements in \
the image logically fit the scenario described in the prompt. The environment should support and \
enhance the subject without contradictions.
- **Attribute Fidelity**: Check if specific attributes mentioned in the prompt (e.g., colors, \
clothing, accessories, expressions, actions) are faithfully represented in the image. Minor \
deviations may be acceptable, but critical attributes should be preserved.
- **Semantic Coherence**: Evaluate whether the overall meaning and intent of the prompt are \
captured in the image. The generated content should not introduce elements that conflict with or \
distort the original description.
Textual prompt - {{}}



Please provide the overall ratings of this image: {TOKEN}

END
"""


@dataclass(repr=False, eq=False)
class HPSv3(VisionLanguageReward):
    """mu of the rating N(mu, sigma^2) of an image, (B,), about 0 to 12 (Ma et al. 2025).

    A Qwen2-VL-7B reads image, criteria and prompt; a head of three linear maps in float32 makes mu
    and log sigma of its last state at the token <|Reward|>. That the published numbers come out was
    not checked, as that takes the weights.
    """

    name = "HPSv3"

    checkpoint: str | Path | None = option(
        None, help="A local HPSv3.safetensors, which is fetched from the hub without one."
    )
    _: KW_ONLY
    base: str | Path = option(
        "Qwen/Qwen2-VL-7B-Instruct",
        help="Hub id or folder of the model that it was trained from, for its settings and words.",
    )

    def __post_init__(self) -> None:
        from huggingface_hub import hf_hub_download
        from safetensors.torch import load_file

        published = load_file(self.checkpoint or hf_hub_download(HUB, FILE))
        backbone = load_published(published, self.base, getattr(torch, self.precision))
        head = published_head(published, "rm_head", ("0", "3", "5"), nn.ReLU())
        network = nn.ModuleDict({"backbone": backbone, "head": head})
        self.hold_model(network, self.base, {"shortest_edge": PIXELS, "longest_edge": PIXELS})
        self.network["head"].float()
        self.processor.tokenizer.add_tokens([TOKEN], special_tokens=True)
        self.token = self.processor.tokenizer.convert_tokens_to_ids(TOKEN)

    def rate(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """mu and log sigma of images, (B, 2); carries gradient to them."""
        backbone, head = self.network["backbone"], self.network["head"]
        rated = []
        for image, prompt in zip(images, prompts, strict=True):
            inputs = self.inputs(image, QUESTION.replace("{}", prompt))
            tokens = inputs["input_ids"]
            # The published code counts the tokens of image and text alike, which Qwen2-VL does not.
            places = torch.arange(tokens.shape[1], device=tokens.device).expand(3, 1, -1)
            read = backbone(**inputs, position_ids=places, use_cache=False).last_hidden_state
            state = read[tokens == self.token][-1]  # a prompt may hold the token too
            rated.append(head(state.to(head[0].weight.dtype)))
        return torch.stack(rated)

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.rate(images, prompts)[:, 0]


def load_published(
    published: Mapping[str, Tensor], base: str | Path, dtype: torch.dtype
) -> nn.Module:
    """The Qwen2-VL among published weights; transformers knows their old names.

    Raises ValueError if one is missing.
    """
    from transformers import AutoConfig, Qwen2VLModel

    weights = {n: w for n, w in published.items() if not n.startswith(("lm_head.", "rm_head."))}
    words = [w for n, w in weights.items() if n.endswith("embed_tokens.weight")]
    config = AutoConfig.from_pretrained(base)
    if words:  # TOKEN among them, and fewer than the base has room for
        config.text_config.vocab_size = len(words[0])
    network, report = Qwen2VLModel.from_pretrained(
        None, config=config, state_dict=weights, dtype=dtype, output_loading_info=True
    )
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"these are not the weights of an HPSv3: {missing[0]} is missing")
    return network
