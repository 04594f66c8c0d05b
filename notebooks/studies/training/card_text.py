"""The model card in words; `text` fills in the numbers that `card` measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from datekit.shapes.captions import FAMILIES
from studies.mistakes import FAILURES
from studies.results import grid
from studies.training.negatives import GARBLING

MODELS = {
    "denoiser": ("denoiser", "noisy", "noisier"),
    "flow": ("flow", "flow-noisy", "flow-noisier"),
}  # their stages
DENOISING = tuple(stage for stages in MODELS.values() for stage in stages)

FLOW = {
    "folder": """\
- `pipeline-flow/`: a `StableDiffusion3Pipeline` folder (two `CLIPTextModelWithProjection`, no T5, an `SD3Transformer2DModel`
  trained by flow matching, `FlowMatchEulerDiscreteScheduler` with shift 3) on the same latents and captions. Plain diffusers wants
  it said that there is no T5: `from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)`. Where the T5 encoder
  is missing the pipeline puts `max_sequence_length` zero embeddings; one is enough (`max_sequence_length=1`, what `dk.load` uses),
  and the default of 256 means the same and takes longer.
""",
    "stage": """
4. `flow`, `flow-noisy`, `flow-noisier`: the same for the joint transformer, by flow matching, in a lane of its own.""",
}

TEMPLATE = """\
# Model card: {names}

{what}, two CLIPs and two small rewards, small enough to ship with a package, for experiments on sampling
methods. The pictures show one to three coloured shapes on a light ground, 64 x 64 pixels. Made on {date} from nothing: no
pretrained weights, no outside data. The weights, like the code that made them, are under the Apache License 2.0.

## What is here
- `pipeline/`: a `StableDiffusionPipeline` folder (`CLIPTokenizer`, `CLIPTextModel`, `UNet2DConditionModel` with v
  prediction, `AutoencoderKL` to 4 x 16 x 16 latents, `DDIMScheduler`). `datekit.json` holds the recommended settings.
{flow_folder}- `clip/`, `clip-plain/`, `clip-heldout/`: open_clip models (`local-dir:` loader). The first two guide; the last only judges.
  `clip` is `clip-plain` with its image tower fine-tuned on x0bars of both pipelines and on attacked pictures. All have the ResNet of
  the first CLIP as image tower; the judge is deeper, with twice the heads, a narrower embedding and another seed. Images in [0, 1] are
  normalised with mean and deviation 0.5.
- `preference/`: the guide with a head, trained on which of two pictures simulated raters prefer (`shapes-preference`);
  `aesthetic/`: a small convolutional network that rates a look no prompt asks for (`shapes-aesthetic`).
- `tiny/`: an `AutoencoderTiny` on the same latents, taught the decoder's pictures and its pull-back of random changes, a third of its
  price: the cheap decoder of `dk.DATE(reward, decoder="tiny")`, for the reward only.
- `softrepa/`: soft text tokens for each pipeline, made after it by `python -m studies softrepa` (settings, training curve and what they
  change on held-out prompts: `notebooks/studies/results/softrepa-*.json`). The pipelines are used without them unless asked.

{parameters}

## Data
Scenes are drawn by `datekit.shapes`: 6 colours, 4 shapes, 4 relations, jitter in place, size and ground. About one in seven
unordered pairs of coloured shapes is held out: no model here, CLIPs and autoencoder included, has seen such a pair together.
The denoiser saw 24,000 scenes with captions drawn afresh at every step; autoencoder and CLIPs saw fresh scenes throughout,
the CLIPs also 6,000 blurry ones (decoded from spoilt latents), because a reward during sampling sees blurry predictions.

## Training
{hardware}; torch {torch}; seed {seed}; one thread a stage, two stages side by side: {minutes} minutes of one-thread work{flow_minutes};
other work ran beside it, so seconds are upper bounds.{provenance}

{stages}

1. `autoencoder`, then `clip`, which ships as `clip-plain`; then, beside all that follows, `clip-heldout`, the judge.
2. `denoiser`: a U-Net with the text tower of `clip-plain`, frozen, as Stable Diffusion takes its frozen text encoder from a CLIP. A text
   encoder that was trained along forgot which way a relation points: after 9,900 steps the axis was right and the direction at
   chance (38 % of prompts right). Half of the timesteps are from 700 on, where the layout is decided; most captions are of position.
3. `noisy`, `noisier`: see below.{flow_stage}

Oracle accuracy on 100 held-out position prompts (20 steps, guidance 3):

{curve}

Last, `robust`: the image tower of `clip-plain` becomes that of `clip`, the guide. It learns from 2,400 x0bars of each pipeline
(training scenes noised at steps 0 to 13 of 20, true captions, guidance 0 to 6) and as many fresh scenes with twins and blur, every
picture attacked as below. Its text tower, scale and statistics of normalisation stay. No oracle, no held-out pair and no judge takes
part. `preference` starts from such a guide, and its pictures are attacked in the same way.

### How the room was made
To leave room for sampling methods, the last two stages fine-tune on *clean images with noisy captions*, as web captions are
noisy: each colour and shape word is redrawn with probability {noisy:g}, in the last stage {word:g}; there the relation is redrawn, too,
with {relation:g}, and a lone thing gets a companion that is not there with {unseen:g}. The recommended guidance scale is the smallest that
is within two standard errors of the best, by the sweep below. Pictures stay crisp for the most part; what they mean is more
often wrong (how often it is the form instead: see below). This is a deliberate weakness, and gains measured on this model are gains in
the presence of it.

## Accuracy
Share of images that are right in every statement by the exact oracle; {n} prompts and noises a family, held-out pairs where a
family has pairs, prompts disjoint from those used for tuning ({settings}):

{families}

A position prompt asks for all that the world has, two shapes, their colours and their relation: it is what the experiments use, and
where the flow model is somewhat better. In single things, two, attribution and counting it is behind.

What kind of mistakes? Of position prompts {wrong} pictures are wrong. Each counts by its first mistake, in brackets its share. What the
prompt names may have its shape in the picture, or else its colour; a second copy of the other thing is neither. *left out*: something
has nothing at all there; *shape*: something has its colour alone; *binding*: it has its shape, and a colour that the prompt gives to the
other; *colour*: its shape, and a colour that nobody named or that is none; *misplaced*: the right things in a wrong relation; *surplus*:
something beside them. Most of these are mistakes of meaning: {unclear} pictures hold a thing that is no clean shape of one of the
colours (torn, melted or in two colours).

{mistakes}

200 held-out position prompts (the tuning part), 20 steps, by guidance scale:

{sweep}

The autoencoder alone: {vae_oracle} right by the oracle, {vae_psnr} dB.{tiny}

### CLIPs
Choosing the true position caption of a held-out scene among itself and 7 hard negatives (one word changed, attributes
swapped, relation changed, one thing more or fewer); then the same with captions of any family, and with each picture attacked: one
step of a random size, up to .025 root mean square a pixel, up the gradient of the loss of those captions:

{clips}

### Preference and aesthetic score
How often the better of two pictures scores higher, by what the other shows (one thing altered; attributes or relation swapped;
pictures spoilt; the same scene less clean), and the correlation with the look that was rated, sharp and blurred:

{small}

### Oracle
Share of true captions it finds true, {oracle_images} renders:

{oracle}

It is strict on blur: a shape must overlap a template by 78 %.

## Limits
It knows the words of its grammar only; anything else is spelt out letter by letter and means nothing. Objects that touch
count as one unknown object for the oracle. It is for teaching and testing, and says nothing about how large a method's gain
would be on a large model.

## Again from nothing
`python -m studies.training DIR` (in `notebooks`) makes all of it, resumable at any point; `--stage` takes a part.
"""


def text(facts: Mapping[str, Any]) -> str:
    """The model card of what `card.write` measured."""
    models, stages = facts["models"], facts["stages"]
    names = [model["defaults"]["name"] for model in models.values()]
    flow = "flow" in models
    training = [stage for stage in stages if stage not in MODELS["flow"]]
    tiny = facts.get("tiny")
    return TEMPLATE.format(
        date=facts["date"],
        seed=facts["seed"],
        hardware=facts["hardware"],
        torch=facts["torch"],
        names=" and ".join(names),
        what=f"{'Two' if flow else 'A'} text-to-image latent diffusion model{'s' * flow}",
        minutes=_minutes(stages, training),
        flow_minutes=f", and {_minutes(stages, MODELS['flow'])} for the flow model" * flow,
        flow_folder=FLOW["folder"] * flow,
        flow_stage=FLOW["stage"] * flow,
        provenance="".join(f" {sentence}" for sentence in facts.get("provenance", ())),
        parameters=_table(
            ("part", "parameters"), [(name, f"{n:,}") for name, n in facts["parameters"].items()]
        ),
        stages=_table(
            ("stage", "steps", "seconds", "final loss"),
            [(k, s["steps"], s["seconds"], s["curve"][-1]["loss"]) for k, s in stages.items()],
        ),
        curve=_curve(stages),
        small=_small(facts),
        noisy=GARBLING["noisy"]["word"],
        **GARBLING["noisier"],
        n=models["denoiser"]["images"],
        settings="; ".join(
            f"{d['name']}: {d['num_steps']} steps, guidance {d['guidance_scale']:g}"
            for d in (model["defaults"] for model in models.values())
        ),
        families=_families(models, names),
        mistakes=_mistakes(models, names),
        wrong=_each(models, "wrong", "images"),
        unclear=_each(models, "unclear", "wrong"),
        sweep=_table(
            ("guidance scale", *names),
            [
                (scale, *_percent(models, "guidance, 20 steps", scale))
                for scale in models["denoiser"]["guidance, 20 steps"]
            ],
        ),
        clips=_clips(facts),
        oracle=_table(
            ("image", "right"),
            [(k, f"{v:.2%}") for k, v in facts["oracle"].items() if k != "images"],
        ),
        oracle_images=facts["oracle"]["images"],
        vae_oracle=f"{facts['autoencoder']['oracle']:.1%}",
        vae_psnr=facts["autoencoder"]["psnr"],
        tiny=f" The tiny one's pictures against its: {tiny['psnr']:.1f} dB." if tiny else "",
    )


def _table(head: Sequence[Any], rows: Iterable[Sequence[Any]]) -> str:
    """Rows of numbers or words as a Markdown table."""
    return grid([str(cell) for cell in head], [[str(cell) for cell in row] for row in rows])


def _minutes(stages: Mapping, names: Iterable[str]) -> int:
    """How long these stages took in all."""
    return round(sum(stages[name]["seconds"] for name in names if name in stages) / 60)


def _percent(models: Mapping, key: str, row: str) -> list[str]:
    """A share of each model, by table and row."""
    return [f"{model[key][row]:.0%}" for model in models.values()]


def _each(models: Mapping, few: str, many: str) -> str:
    """So many of so many pictures, of each model."""
    found = (model["mistakes"] for model in models.values())
    return " and ".join(f"{row[few]} of {row[many]}" for row in found)


def _curve(stages: Mapping) -> str:
    """How the denoisers' losses fell and their pictures came right."""
    rows = [(name, row) for name in DENOISING if name in stages for row in stages[name]["curve"]]
    cells = [(name, row["step"], row["loss"], f"{row['oracle']:.0%}") for name, row in rows]
    return _table(("stage", "step", "loss", "oracle"), cells)


def _small(facts: Mapping) -> str:
    """What the small rewards get right: a share for the preference, a correlation for the look."""
    forms = {"preference": ".1%", "aesthetic": ".3f"}
    cells = [
        (name, case, f"{value:{form}}")
        for name, form in forms.items()
        for case, value in facts.get(name, {}).items()
    ]
    return _table(("model", "case", ""), cells)


def _families(models: Mapping, names: Sequence[str]) -> str:
    """Right pictures by family, and over pairs that training showed."""
    mean = [f"{np.mean(list(model['families'].values())):.0%}" for model in models.values()]
    seen = [f"{model['position, seen pairs']:.0%}" for model in models.values()]
    rows = [(family, *_percent(models, "families", family)) for family in FAMILIES]
    rows += [("mean of these", *mean), ("position, over pairs seen in training", *seen)]
    return _table(("family", *names), rows)


def _mistakes(models: Mapping, names: Sequence[str]) -> str:
    """How many wrong pictures have each mistake, and their share."""

    def cell(row: Mapping, kind: str) -> str:
        return f"{row['kinds'][kind]} ({row['kinds'][kind] / max(1, row['wrong']):.0%})"

    found = [model["mistakes"] for model in models.values()]
    rows = [(kind, *(cell(row, kind) for row in found)) for kind in FAILURES]
    return _table(("what is wrong first", *names), rows)


def _clips(facts: Mapping) -> str:
    """How often each CLIP picks the true caption, on clear, blurred and attacked pictures."""
    rows = []
    for name, attacked in facts["robustness"].items():
        clear = [facts[name][view] for view in ("sharp", "blur 1.5", "blur 3")]
        rows.append((name, *(f"{share:.1%}" for share in (*clear, *attacked.values()))))
    return _table(("model", "sharp", "blur 1.5 px", "blur 3 px", "any caption", "attacked"), rows)
