"""Times a training step of diffusers' UNet with a LoRA, the counterpart of `soda bench`.

    python diffusers_step.py --arch sd15 --batch 1 --latents 64 --dtype bf16 [--compile [MODE]] [--checkpoint]

The weights are random, because speed does not depend on them. Prints one line of JSON with the fields of `soda bench`.
"""

import argparse
import json
import time

START = time.perf_counter()

import torch  # noqa: E402
from diffusers import UNet2DConditionModel  # noqa: E402

SD15 = dict(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
SDXL = dict(
    sample_size=128,
    cross_attention_dim=2048,
    block_out_channels=(320, 640, 1280),
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    transformer_layers_per_block=(1, 2, 10),
    attention_head_dim=(5, 10, 20),
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
)
TOYBOX = dict(
    sample_size=16,
    cross_attention_dim=160,
    block_out_channels=(64, 128, 160),
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    layers_per_block=1,
    norm_num_groups=16,
    attention_head_dim=4,
)


class Lora(torch.nn.Module):
    """`x Wᵀ + b + (x A) B`, with A and B in float32 and W frozen."""

    def __init__(self, base, rank):
        super().__init__()
        self.base = base
        scale = base.in_features**-0.5
        make = lambda *shape: torch.nn.Parameter(torch.randn(*shape, device=base.weight.device))
        self.a = make(base.in_features, rank)
        self.b = make(rank, base.out_features)
        with torch.no_grad():
            self.a.mul_(scale)
            self.b.zero_()

    def forward(self, x):
        return self.base(x) + x @ self.a.to(x.dtype) @ self.b.to(x.dtype)


def attention_only(unet, rank):
    for name, module in unet.named_modules():
        if name.endswith(("attn1", "attn2")):
            for key in ("to_q", "to_k", "to_v"):
                setattr(module, key, Lora(getattr(module, key), rank))
            module.to_out[0] = Lora(module.to_out[0], rank)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--arch", default="sd15", choices=("toybox", "sd15", "sdxl"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--latents", type=int, help="side of the latents, an eighth of the image's")
    parser.add_argument("--dtype", default="bf16", choices=("bf16", "f16", "f32"))
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--compile", nargs="?", const="default", metavar="MODE", help="mode of torch.compile")
    parser.add_argument("--checkpoint", action="store_true")
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()

    config = {"toybox": TOYBOX, "sd15": SD15, "sdxl": SDXL}[args.arch]
    dtype = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}[args.dtype]
    torch.manual_seed(0)
    with torch.device(args.device):
        torch.set_default_dtype(dtype)
        unet = UNet2DConditionModel(**config)
        torch.set_default_dtype(torch.float32)
    unet.requires_grad_(False)
    attention_only(unet, args.rank)
    if args.checkpoint:
        unet.enable_gradient_checkpointing()
    unet.train()
    trained = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)

    cuda = args.device == "cuda"
    sync = torch.cuda.synchronize if cuda else lambda: None
    side = args.latents or config["sample_size"]
    draw = lambda *shape: torch.randn(*shape, device=args.device, dtype=dtype)
    inputs = dict(
        sample=draw(args.batch, 4, side, side),
        timestep=torch.full((args.batch,), 500, device=args.device),
        encoder_hidden_states=draw(args.batch, 77, unet.config.cross_attention_dim),
    )
    if unet.config.addition_embed_type == "text_time":
        ids = torch.tensor([[8 * side, 8 * side, 0, 0, 8 * side, 8 * side]] * args.batch)
        inputs["added_cond_kwargs"] = dict(
            text_embeds=draw(args.batch, 1280), time_ids=ids.to(args.device)
        )
    target = draw(args.batch, 4, side, side)
    network = torch.compile(unet, mode=args.compile) if args.compile else unet

    def step():
        loss = (network(**inputs).sample - target).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    step()
    sync()
    cold = time.perf_counter() - START
    for _ in range(3):
        step()
    sync()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(args.steps):
        begin = time.perf_counter()
        step()
        sync()
        times.append(time.perf_counter() - begin)
    times.sort()
    print(
        json.dumps(
            dict(
                program=f"torch {torch.__version__} " + (f"compiled ({args.compile})" if args.compile else "eager"),
                arch=args.arch,
                method=f"lora-{args.rank}",
                batch=args.batch,
                latents=side,
                dtype=args.dtype,
                trained=sum(p.numel() for p in trained),
                first_step_s=round(cold, 2),
                step_ms=round(1e3 * times[len(times) // 2], 2),
                step_ms_min=round(1e3 * times[0], 2),
                peak_mib=round(torch.cuda.max_memory_reserved() / 2**20) if cuda else None,
                peak_allocated_mib=round(torch.cuda.max_memory_allocated() / 2**20) if cuda else None,
            )
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
