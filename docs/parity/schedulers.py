"""Reference trajectories of every sampler.

Writes crates/soda-models/tests/fixtures/{schedulers,multistep,second-order,flow}.safetensors, which
tests/schedulers.rs and tests/flow.rs compare with: timesteps, noise levels, and the sample after each step, for a
network that is a formula of its input and its timestep, and noise that is a formula of the call
(models.py's `value`).

    pip install torch diffusers safetensors
    python docs/parity/schedulers.py
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from safetensors.torch import save_file

sys.path.append(str(Path(__file__).parent))
from models import FIXTURES, value

SHAPE = (1, 4, 2, 3)
# Latent Diffusion's schedule.
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SPACINGS = ["leading", "trailing", "linspace"]
V, ZERO = {"prediction_type": "v_prediction"}, {"rescale_betas_zero_snr": True}


def cases():
    """(class, steps, fields)."""
    for spacing in SPACINGS:
        space = {"timestep_spacing": spacing, "steps_offset": 1 if spacing == "leading" else 0}
        for kind in ["epsilon", "v_prediction", "sample"]:
            fields = {**space, "prediction_type": kind}
            yield DDIMScheduler, 7, {**fields, "clip_sample": False}
            yield DDPMScheduler, 6, {**fields, "clip_sample": False}
            yield EulerDiscreteScheduler, 7, fields
            yield DPMSolverMultistepScheduler, 8, fields
            if kind != "sample":
                yield EulerAncestralDiscreteScheduler, 7, fields
                yield PNDMScheduler, 8, {**fields, "skip_prk_steps": True}
        yield EulerDiscreteScheduler, 9, {**space, "use_karras_sigmas": True}
        yield DPMSolverMultistepScheduler, 9, {**space, "use_karras_sigmas": True}
    # Clipping is on where a config does not say; a schedule of images.
    yield DDIMScheduler, 5, {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}
    yield DDIMScheduler, 5, {"set_alpha_to_one": False, "clip_sample": True, "clip_sample_range": 0.7}
    yield DDPMScheduler, 5, {"beta_schedule": "squaredcos_cap_v2"}
    yield PNDMScheduler, 2, {"skip_prk_steps": True, "set_alpha_to_one": True}
    yield EulerDiscreteScheduler, 5, {"final_sigmas_type": "sigma_min", **V}
    yield EulerDiscreteScheduler, 1, {"timestep_spacing": "trailing"}
    for zero in [DDIMScheduler, DDPMScheduler]:
        yield zero, 6, {**V, **ZERO, "timestep_spacing": "trailing", "clip_sample": False}
    for zero in [EulerDiscreteScheduler, EulerAncestralDiscreteScheduler, DPMSolverMultistepScheduler]:
        yield zero, 6, {**V, **ZERO, "timestep_spacing": "trailing"}
    for order in [1, 2, 3]:
        for algorithm in ["dpmsolver++", "sde-dpmsolver++"]:
            fields = {"solver_order": order, "algorithm_type": algorithm}
            yield DPMSolverMultistepScheduler, 6, fields
            yield DPMSolverMultistepScheduler, 16, fields
            heun = {**fields, "solver_type": "heun", "final_sigmas_type": "sigma_min"}
            yield DPMSolverMultistepScheduler, 6, {**heun, "lower_order_final": False}
    yield DPMSolverMultistepScheduler, 16, {"euler_at_final": True, "final_sigmas_type": "sigma_min"}
    yield DPMSolverMultistepScheduler, 7, {"beta_schedule": "squaredcos_cap_v2", "use_karras_sigmas": True}


def spaces():
    """The spacings, with their offsets."""
    for spacing in SPACINGS:
        yield {"timestep_spacing": spacing, "steps_offset": 1 if spacing == "leading" else 0}


def multistep_cases():
    """(class, steps, fields) of DEIS and UniPC."""
    solvers = [DEISMultistepScheduler, UniPCMultistepScheduler]
    low = {"final_sigmas_type": "sigma_min"}
    for solver in solvers:
        for space in spaces():
            for kind in ["epsilon", "v_prediction", "sample"]:
                yield solver, 7, {**space, "prediction_type": kind}
            yield solver, 9, {**space, "use_karras_sigmas": True}
        for order in [1, 2, 3]:
            final = low if solver is UniPCMultistepScheduler else {}
            yield solver, 6, {"solver_order": order}
            yield solver, 16, {"solver_order": order, "use_karras_sigmas": True, **V}
            yield solver, 7, {"solver_order": order, "lower_order_final": False, **final}
        yield solver, 1, {}
        yield solver, 2, {"timestep_spacing": "trailing"}
        # What another class has left in the file.
        yield solver, 5, {"solver_type": "midpoint"}
    for order in [1, 2, 3]:
        # diffusers' last step to noise level 0 is NaN with these.
        yield UniPCMultistepScheduler, 7, {"solver_order": order, "solver_type": "bh1", **low}
        for kind in ["epsilon", "v_prediction", "sample"]:
            noise = {"solver_order": order, "prediction_type": kind, "predict_x0": False}
            yield UniPCMultistepScheduler, 6, {**noise, **low}
    yield UniPCMultistepScheduler, 6, {"disable_corrector": [0, 3], "solver_order": 3}
    yield UniPCMultistepScheduler, 6, {"use_karras_sigmas": True, **low}
    yield UniPCMultistepScheduler, 6, {**V, **ZERO, "timestep_spacing": "trailing"}


def second_order_cases():
    """(class, steps, fields) of LMS, Heun, DPM2 and LCM."""
    twice = [HeunDiscreteScheduler, KDPM2DiscreteScheduler, KDPM2AncestralDiscreteScheduler]
    for space in spaces():
        for kind in ["epsilon", "v_prediction", "sample"]:
            fields = {**space, "prediction_type": kind}
            yield LMSDiscreteScheduler, 7, fields
            yield HeunDiscreteScheduler, 4, fields
            if kind != "sample":
                yield KDPM2DiscreteScheduler, 4, fields
                yield KDPM2AncestralDiscreteScheduler, 4, fields
        yield LMSDiscreteScheduler, 9, {**space, "use_karras_sigmas": True}
        for solver in twice:
            yield solver, 4, {**space, "use_karras_sigmas": True, **V}
    yield HeunDiscreteScheduler, 4, {"clip_sample": True, "clip_sample_range": 0.7}
    for solver in [LMSDiscreteScheduler, *twice]:
        yield solver, 1, {"timestep_spacing": "trailing"}
        yield solver, 3, {"beta_schedule": "linear"}
    for kind in ["epsilon", "v_prediction", "sample"]:
        yield LCMScheduler, 4, {"prediction_type": kind}
    yield LCMScheduler, 1, {}
    yield LCMScheduler, 7, {"original_inference_steps": 20, "timestep_scaling": 1.0}
    yield LCMScheduler, 3, {**V, **ZERO, "clip_sample": True}


def main() -> None:
    write("schedulers", cases())
    write("multistep", multistep_cases())
    write("second-order", second_order_cases())
    write_flow()


def flow_cases():
    """(steps, image tokens, fields) of flow matching."""
    dynamic = {"use_dynamic_shifting": True}
    for tokens in [64, 256, 1024, 4096, 4300, 4301, 16384]:
        yield 7, tokens, dynamic
    for steps in [1, 2, 4, 50]:
        yield steps, 1024, dynamic
    for tokens in [64, 4096]:
        yield 8, tokens, {**dynamic, "time_shift_type": "linear"}
    for shift in [1.0, 3.0, 6.0, 0.5]:
        yield 8, 1024, {"shift": shift}
    yield 5, 1024, {"shift": 3.0, "num_train_timesteps": 500}
    yield 1, 1024, {"shift": 3.0}


def write_flow() -> None:
    """Noise levels as the pipelines of FLUX.2 give them to the scheduler, and steps along them."""
    out, table = {}, []
    for index, (steps, tokens, fields) in enumerate(flow_cases()):
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(fields)
        saved = {**json.loads(scheduler.to_json_string()), "_class_name": type(scheduler).__name__}
        sigmas = np.linspace(1.0, 1 / steps, steps)
        mu = compute_empirical_mu(image_seq_len=tokens, num_steps=steps)
        scheduler.set_timesteps(sigmas=sigmas, mu=mu)
        bias = value("network", *SHAPE)
        sample = value("start", *SHAPE)
        middle = scheduler.timesteps[steps // 2 : steps // 2 + 1]
        out[f"{index}.noisy"] = scheduler.scale_noise(value("start", *SHAPE), middle, bias)
        scheduler.set_begin_index(0)
        trajectory = []
        for t in scheduler.timesteps:
            prediction = sample * 0.6 + bias * (0.2 + 0.0005 * t)
            sample = scheduler.step(prediction, t, sample).prev_sample
            trajectory.append(sample)
        out[f"{index}.timesteps"] = scheduler.timesteps
        out[f"{index}.steps"] = torch.cat(trajectory)
        table.append({"config": saved, "steps": steps, "tokens": tokens})
    save("flow", out, table)


def write(name: str, rows) -> None:
    out, table = {}, []
    for index, (kind, steps, fields) in enumerate(rows):
        # What a file says: the class and what differs from its defaults, or all of it.
        config = {"_class_name": kind.__name__, **BETAS, **fields}
        scheduler = kind.from_config(config)
        full = index % (2 if name == "schedulers" else 7) == 0
        saved = json.loads(scheduler.to_json_string()) if full else config
        scheduler.set_timesteps(steps)
        call = 0

        def randn(shape, **_):
            return value(f"noise.{call}", *shape)

        sys.modules[kind.__module__].randn_tensor = randn
        bias = value("network", *SHAPE)
        sample = value("start", *SHAPE) * scheduler.init_noise_sigma
        timesteps, trajectory = scheduler.timesteps, []
        if hasattr(scheduler, "set_begin_index"):
            # Left alone, it starts at the second of two equal timesteps.
            scheduler.set_begin_index(0)
        for call, t in enumerate(timesteps):
            seen = scheduler.scale_model_input(sample, t)
            prediction = seen * 0.6 + bias * (0.2 + 0.0005 * t.float())
            sample = scheduler.step(prediction, t, sample).prev_sample
            trajectory.append(sample)
        out[f"{index}.timesteps"] = timesteps.float()
        out[f"{index}.steps"] = torch.cat(trajectory)
        if hasattr(scheduler, "sigmas"):
            out[f"{index}.sigmas"] = scheduler.sigmas[: len(timesteps)]
        if hasattr(scheduler, "sigmas_interpol"):
            # Every second call is halfway to the next noise level. The classes count differently.
            first = 0 if kind is KDPM2AncestralDiscreteScheduler else 1
            halves = scheduler.sigmas_interpol[first::2][: len(timesteps) // 2]
            out[f"{index}.sigmas"][1::2] = halves
        # A picture noised in the middle of the plan.
        scheduler = kind.from_config(config)
        scheduler.set_timesteps(steps)
        middle = len(timesteps) // 2
        middle -= middle % getattr(kind, "order", 1)
        noisy = scheduler.add_noise(value("start", *SHAPE), bias, timesteps[middle : middle + 1])
        out[f"{index}.noisy"] = noisy
        out[f"{index}.sigma"] = torch.tensor([float(scheduler.init_noise_sigma)])
        table.append({"config": saved, "steps": steps})
    save(name, out, table)


def save(name: str, out: dict, table: list) -> None:
    out = {key: tensor.float().contiguous() for key, tensor in out.items()}
    path = FIXTURES / f"{name}.safetensors"
    save_file(out, path, {"cases": json.dumps(table)})
    print(f"{len(table)} cases, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
