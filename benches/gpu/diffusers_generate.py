"""Draws with diffusers' pipeline of a model, the counterpart of `soda generate`.

    python diffusers_generate.py MODEL --count 1 [--dtype bf16] [--guidance 4] [--compile [MODE]]

Prints one line of JSON: seconds of the whole process, of loading, and of the pictures once everything is warm.
"""

import argparse
import json
import time

START = time.perf_counter()

import torch  # noqa: E402
from diffusers import DiffusionPipeline  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--compile", nargs="?", const="default")
    parser.add_argument("--dtype", default="f16", choices=("bf16", "f16"))
    parser.add_argument("--guidance", type=float, default=5.0)
    args = parser.parse_args()
    dtype = {"bf16": torch.bfloat16, "f16": torch.float16}[args.dtype]
    pipe = DiffusionPipeline.from_pretrained(args.model, torch_dtype=dtype)
    pipe.to("cuda")
    pipe.set_progress_bar_config(disable=True)
    loaded = time.perf_counter()
    if args.compile:
        name = "unet" if hasattr(pipe, "unet") else "transformer"
        denoiser = getattr(pipe, name)
        if name == "unet":
            denoiser.to(memory_format=torch.channels_last)
        setattr(pipe, name, torch.compile(denoiser, mode=args.compile, fullgraph=name == "unet"))

    def draw():
        prompts = ["a photo of a red mug on a beach"] * args.count
        images = pipe(prompt=prompts, num_inference_steps=args.steps, guidance_scale=args.guidance).images
        for index, image in enumerate(images):
            image.save(f"diffusers-{index}.png")
        return time.perf_counter()

    first = draw()
    second = draw()
    print(
        json.dumps(
            {
                "program": "diffusers" + (f" compiled ({args.compile})" if args.compile else ""),
                "count": args.count,
                "loaded_s": round(loaded - START, 2),
                "first_s": round(first - START, 2),
                "again_s": round(second - first, 2),
            }
        )
    )


if __name__ == "__main__":
    main()
