"""The kinds of diffusers' schedulers: which are taken and which not, and where their xt lies."""

from __future__ import annotations

import copy
import inspect
import math
from typing import Any

from .errors import unknown

SOLVERS = {
    "ddim": "DDIMScheduler", "ddpm": "DDPMScheduler", "dpm++": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler", "unipc": "UniPCMultistepScheduler",
}  # fmt: skip
FLOW_SOLVERS = {
    "euler": "FlowMatchEulerDiscreteScheduler",
    "dpm++": SOLVERS["dpm++"],
    "unipc": SOLVERS["unipc"],
}
OWN = "own"  # the name of the pipeline's own scheduler
EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")  # without betas, xt = x0 + sigma eps
DISTILLED = ("LCMScheduler", "TCDScheduler")  # made for models of a few steps
FROM_THE_START = (  # of no use from the middle of a run on, as they count on their own past
    "FlowMatchHeunDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler",
    "PNDMScheduler",
)  # fmt: skip
STOCHASTIC = (  # which add noise in any case
    "DDPMScheduler", "EulerAncestralDiscreteScheduler", "FlowMatchLCMScheduler", "LCMScheduler",
)  # fmt: skip
KNOWN = {  # those without a name are the pipeline's own, or given as objects
    *SOLVERS.values(), *FLOW_SOLVERS.values(), *EDM, *DISTILLED, *FROM_THE_START, *STOCHASTIC,
    "DEISMultistepScheduler", "DPMSolverSinglestepScheduler",
}  # fmt: skip
REFUSED = {  # why, and the nearest that is taken
    "DPMSolverSDEScheduler": "draws a path in time, not noise for a step; take "
    "DPMSolverMultistepScheduler(algorithm_type='sde-dpmsolver++')",
    "KDPM2DiscreteScheduler": "halts between its levels; take HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler": "halts between its levels; take "
    "EulerAncestralDiscreteScheduler",
}
UNFIT = {  # settings, and the way out
    "stochastic_sampling": "draws noise that no seed controls; FlowMatchLCMScheduler does from one",
    "scale_factors": "changes the size of the latents on the way; leave it out",
}
PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow_prediction")


def kind_of(scheduler: Any) -> str:
    """The name of a scheduler's class."""
    return type(scheduler).__name__


def configs(*schedulers: Any) -> list[dict]:
    """What schedulers are set to now; a name has nothing."""
    return [dict(getattr(each, "config", {})) for each in schedulers]


def build(scheduler: Any, name: Any) -> Any:
    """A scheduler of the wanted kind for a model that was trained with `scheduler`.

    name: one of `SOLVERS`, "own", or a scheduler. Raises TypeError or ValueError for what is not
    known to step as it says, with the nearest that is.
    """
    own = kind_of(scheduler)
    if not is_flow(scheduler) and own not in EDM and "beta_schedule" not in scheduler.config:
        trained = "and no solver here knows the noise it was trained with"
        raise ValueError(f"the model's {own} has no betas, {trained}")
    if isinstance(name, str) and name != OWN:
        built = _from_name(scheduler, name)
    else:
        built = copy.deepcopy(scheduler if isinstance(name, str) else name)
    _check(built)
    if (is_flow(built), kind_of(built) in EDM) != (is_flow(scheduler), own in EDM):
        fit = f"does not fit a model trained with {own}"
        raise ValueError(f"{kind_of(built)} as it is set up {fit}; take solver={OWN!r}")
    trained = _training(scheduler)
    if other := [n for n, value in _training(built).items() if value != trained.get(n, value)]:
        told = f"the solver has another {other[0]} than the model was trained with"
        remedy = f"{kind_of(built)}.from_config(pipe.scheduler.config)"
        raise ValueError(f"{told}; take {remedy}, or set the pipeline's own before dk.wrap")
    return built


def _training(scheduler: Any) -> dict[str, Any]:
    """What of a scheduler's settings follows from how its network was trained."""
    names = () if is_flow(scheduler) else ("beta_start", "beta_end", "beta_schedule")
    told = {name: scheduler.config.get(name) for name in names}
    own = scheduler.config.get("prediction_type", prediction_type(scheduler))
    told |= {"prediction_type": own, "sigma_data": abs(deviation(scheduler))}
    if names and hasattr(scheduler, "betas"):  # as other settings than those may make them
        told |= {"betas": [float(f"{beta:.4g}") for beta in scheduler.betas]}
    return told


def _check(scheduler: Any) -> None:
    """Raise TypeError or ValueError for a scheduler, or settings of it, that is not followed."""
    kind = kind_of(scheduler)
    if kind not in KNOWN:
        why = REFUSED.get(kind, f"is none of {sorted(KNOWN)}")
        raise TypeError(f"{kind} is not a solver here: it {why}")
    config, prediction = scheduler.config, prediction_type(scheduler)
    if prediction not in PREDICTIONS:
        raise unknown("prediction type", prediction, PREDICTIONS)
    for setting, why in UNFIT.items():
        if config.get(setting):
            raise ValueError(f"{setting} {why}")
    even = config.get("skip_prk_steps") and config.get("timestep_spacing") == "leading"
    if kind == "PNDMScheduler" and not even:
        wanted = "skip_prk_steps=True and timestep_spacing='leading', as Stable Diffusion has it"
        raise ValueError(f"{kind} leaves its own levels: set {wanted}")


def _from_name(scheduler: Any, name: str) -> Any:
    """diffusers' scheduler of a name, with another one's configuration."""
    import diffusers

    flow, config = is_flow(scheduler), scheduler.config
    known = FLOW_SOLVERS if flow else SOLVERS
    if name not in known:
        raise unknown("solver of a flow" if flow else "solver", name, [*known, OWN])
    # diffusers forgets what was a default once, even where `register_to_config` set it since.
    usual = inspect.signature(type(scheduler).__init__).parameters
    names = [name for name in config.get("_use_default_values", ()) if name in usual]
    changes = {name: config[name] for name in names if config[name] != usual[name].default}
    if not flow:
        # A configuration that does not mention clipping wants none; some classes would add it.
        changes["clip_sample"] = config.get("clip_sample", False)
    else:
        shift = config.get("shift", config.get("flow_shift", 1.0))
        changes |= {"shift": shift, "flow_shift": shift, "use_flow_sigmas": True}
        changes["prediction_type"] = "flow_prediction"
    return getattr(diffusers, known[name]).from_config(config, **changes)


def prediction_type(scheduler: Any) -> str:
    """What the network says, one of `PREDICTIONS`; EDM's says a v, see `deviation`."""
    kind = kind_of(scheduler)
    if kind.startswith("FlowMatch"):
        return "flow_prediction"
    return "v_prediction" if kind in EDM else scheduler.config.get("prediction_type", "epsilon")


def is_flow(scheduler: Any) -> bool:
    """Whether the model was trained by flow matching."""
    return prediction_type(scheduler) == "flow_prediction"


def deviation(scheduler: Any) -> float:
    """k of a network that says v = (k^2 alpha xt / r - r x0) / (k sigma), r = |(k alpha, sigma)|.

    It is the deviation of the data, 1 but for EDM, where "epsilon" is the same with a minus sign.
    """
    if kind_of(scheduler) not in EDM:
        return 1.0
    data = scheduler.config.sigma_data
    return data if scheduler.config.prediction_type == "v_prediction" else -data


def adds_noise(scheduler: Any, eta: float) -> bool:
    """Whether a step adds noise."""
    sde = str(scheduler.config.get("algorithm_type", "")).startswith("sde")
    return bool(eta) or sde or kind_of(scheduler) in STOCHASTIC


def is_distilled(scheduler: Any) -> bool:
    """Whether it is that of a model which was distilled to a few steps without guidance.

    That is LCM or TCD, or Euler for epsilon with trailing timesteps, as of Turbo and Lightning.
    """
    config, kind = scheduler.config, kind_of(scheduler)
    trailing = kind.startswith("Euler") and config.get("timestep_spacing") == "trailing"
    plain = config.get("prediction_type") == "epsilon" and not config.get("rescale_betas_zero_snr")
    return kind in DISTILLED or (trailing and plain)


def levels(scheduler: Any) -> list[tuple[float, float]]:
    """(alpha, sigma) before each step and after the last, in double precision."""
    if hasattr(scheduler, "sigmas"):
        sigmas = scheduler.sigmas.cpu().double()  # MPS has no double precision
        if hasattr(scheduler, "_sigma_to_alpha_sigma_t"):
            pairs = [scheduler._sigma_to_alpha_sigma_t(sigma) for sigma in sigmas]
            return [(float(alpha), float(sigma)) for alpha, sigma in pairs]
        flow = is_flow(scheduler)
        return [(1 - sigma if flow else 1.0, sigma) for sigma in sigmas.tolist()]
    table = scheduler.alphas_cumprod.cpu().double()
    last = getattr(scheduler, "final_alpha_cumprod", 1.0)
    last = {"LCMScheduler": 1.0, "TCDScheduler": table[0]}.get(kind_of(scheduler), last)
    alpha_bar = table[scheduler.timesteps.long().cpu()].tolist()
    return [(math.sqrt(a), math.sqrt(1 - a)) for a in [*alpha_bar, float(last)]]
