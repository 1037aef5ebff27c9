"""Draws with diffusers' StableDiffusionXLPipeline, the counterpart of `soda generate`.

    python diffusers_generate.py MODEL --count 1 [--compile [MODE]]

Prints one line of JSON: seconds of the whole process, of loading, and of the pictures once everything is warm.
"""

import argparse
import json
import time

START = time.perf_counter()

import torch  # noqa: E402
from diffusers import StableDiffusionXLPipeline  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--compile", nargs="?", const="default")
    args = parser.parse_args()
    pipe = StableDiffusionXLPipeline.from_pretrained(args.model, torch_dtype=torch.float16)
    pipe.to("cuda")
    pipe.set_progress_bar_config(disable=True)
    loaded = time.perf_counter()
    if args.compile:
        pipe.unet.to(memory_format=torch.channels_last)
        pipe.unet = torch.compile(pipe.unet, mode=args.compile, fullgraph=True)

    def draw():
        prompts = ["a photo of a red mug on a beach"] * args.count
        images = pipe(prompts, num_inference_steps=args.steps, guidance_scale=5.0).images
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
