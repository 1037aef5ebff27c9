"""Times a training step of a denoiser of diffusers with a LoRA on its attention, the counterpart of `soda bench`.

    python diffusers_step.py --arch sd15 --batch 1 --latents 64 --dtype bf16 [--compile [MODE]] [--checkpoint]

The weights are random, because speed does not depend on them. Prints one line of JSON with the fields of `soda bench`.
"""

import argparse
import json
import time

START = time.perf_counter()

import torch  # noqa: E402
from diffusers import Flux2Transformer2DModel, UNet2DConditionModel, ZImageTransformer2DModel  # noqa: E402

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
TOYFLUX = dict(
    in_channels=32,
    num_layers=2,
    num_single_layers=6,
    attention_head_dim=32,
    num_attention_heads=6,
    joint_attention_dim=192,
    timestep_guidance_channels=128,
    axes_dims_rope=(8, 8, 8, 8),
    guidance_embeds=False,
)
KLEIN_4B = dict(
    num_layers=5, num_single_layers=20, num_attention_heads=24, joint_attention_dim=7680, guidance_embeds=False
)
KLEIN_9B = dict(
    num_layers=8, num_single_layers=24, num_attention_heads=32, joint_attention_dim=12288, guidance_embeds=False
)

# Class, settings, side of the latents, tokens of a prompt.
ARCHITECTURES = {
    "toybox": (UNet2DConditionModel, TOYBOX, 16, 77),
    "sd15": (UNet2DConditionModel, SD15, 64, 77),
    "sdxl": (UNet2DConditionModel, SDXL, 128, 77),
    "toyflux": (Flux2Transformer2DModel, TOYFLUX, 8, 64),
    "flux2-klein-4b": (Flux2Transformer2DModel, KLEIN_4B, 64, 512),
    "flux2-klein-9b": (Flux2Transformer2DModel, KLEIN_9B, 64, 512),
    "z-image": (ZImageTransformer2DModel, {}, 128, 256),
}


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


PROJECTIONS = "to_q to_k to_v to_out add_q_proj add_k_proj add_v_proj to_add_out to_qkv_mlp_proj".split()


def attention_only(denoiser, rank):
    """Adapts what `soda bench` adapts: all projections of attention."""
    for module in list(denoiser.modules()):
        if not type(module).__name__.startswith(("Attention", "Flux2Attention", "Flux2ParallelSelfAttention")):
            continue
        for key in PROJECTIONS:
            found = getattr(module, key, None)
            if isinstance(found, torch.nn.Linear):
                setattr(module, key, Lora(found, rank))
            elif isinstance(found, torch.nn.ModuleList):
                found[0] = Lora(found[0], rank)


def quantize(denoiser, kind):
    """Quantizes what `soda bench --base-precision` does: the linear weights of the blocks, by torchao or bitsandbytes."""
    blocks = ("transformer_blocks", "layers.", "_refiner.")
    inside = lambda module, name: isinstance(module, torch.nn.Linear) and any(b in name for b in blocks) and "adaLN" not in name
    if kind == "nf4":
        return quantize_nf4(denoiser, inside)
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    quantize_(denoiser, {"int8": Int8WeightOnlyConfig, "fp8": Float8WeightOnlyConfig}[kind](), filter_fn=inside)


def quantize_nf4(denoiser, inside):
    from bitsandbytes.nn import Linear4bit, Params4bit

    for name, module in list(denoiser.named_modules()):
        if not inside(module, name):
            continue
        weight, bias = module.weight, module.bias
        layer = Linear4bit(
            module.in_features, module.out_features, bias is not None, weight.dtype, quant_type="nf4", device="meta"
        )
        data = weight.data.to("cpu")
        layer.weight = Params4bit(data, requires_grad=False, quant_type="nf4", compress_statistics=True, module=layer)
        layer.bias = bias
        parent, _, key = name.rpartition(".")
        setattr(denoiser.get_submodule(parent), key, layer.to("cuda"))


def unet_call(unet, batch, side, tokens, draw, device):
    """A call of the UNet on a random batch, and the shape of what it gives."""
    inputs = dict(
        sample=draw(batch, 4, side, side),
        timestep=torch.full((batch,), 500, device=device),
        encoder_hidden_states=draw(batch, tokens, unet.config.cross_attention_dim),
    )
    if unet.config.addition_embed_type == "text_time":
        ids = torch.tensor([[8 * side, 8 * side, 0, 0, 8 * side, 8 * side]] * batch)
        inputs["added_cond_kwargs"] = dict(text_embeds=draw(batch, 1280), time_ids=ids.to(device))
    return lambda network: network(**inputs).sample, (batch, 4, side, side)


def flux2_call(transformer, batch, side, tokens, draw, device):
    grid = torch.cartesian_prod(torch.arange(1), torch.arange(side), torch.arange(side), torch.arange(1))
    words = torch.cartesian_prod(torch.arange(1), torch.arange(1), torch.arange(1), torch.arange(tokens))
    channels = transformer.config.in_channels
    inputs = dict(
        hidden_states=draw(batch, side * side, channels),
        encoder_hidden_states=draw(batch, tokens, transformer.config.joint_attention_dim),
        timestep=torch.full((batch,), 0.5, device=device),
        img_ids=grid.to(device).expand(batch, -1, -1),
        txt_ids=words.to(device).expand(batch, -1, -1),
        return_dict=False,
    )
    return lambda network: network(**inputs)[0], (batch, side * side, channels)


def z_image_call(transformer, batch, side, tokens, draw, device):
    latents = list(draw(batch, 16, 1, side, side))
    text = list(draw(batch, tokens, transformer.config.cap_feat_dim))
    time = torch.full((batch,), 0.5, device=device)
    call = lambda network: torch.stack(network(latents, time, text, return_dict=False)[0])
    return call, (batch, 16, 1, side, side)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--arch", default="sd15", choices=sorted(ARCHITECTURES))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--latents", type=int, help="side of the latents, as of `soda bench`")
    parser.add_argument("--dtype", default="bf16", choices=("bf16", "f16", "f32"))
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--compile", nargs="?", const="default", metavar="MODE", help="mode of torch.compile")
    parser.add_argument("--checkpoint", action="store_true")
    parser.add_argument("--quantize", choices=("int8", "fp8", "nf4"), help="weight-only formats of torchao, and of bitsandbytes")
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()

    network_class, config, side, tokens = ARCHITECTURES[args.arch]
    dtype = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}[args.dtype]
    torch.manual_seed(0)
    with torch.device(args.device):
        torch.set_default_dtype(dtype)
        denoiser = network_class(**config)
        torch.set_default_dtype(torch.float32)
    denoiser.requires_grad_(False)
    attention_only(denoiser, args.rank)
    if args.quantize:
        quantize(denoiser, args.quantize)
    if args.checkpoint:
        denoiser.enable_gradient_checkpointing()
    denoiser.train()
    trained = [p for p in denoiser.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)

    cuda = args.device == "cuda"
    sync = torch.cuda.synchronize if cuda else lambda: None
    side = args.latents or side
    draw = lambda *shape: torch.randn(*shape, device=args.device, dtype=dtype)
    calls = {UNet2DConditionModel: unet_call, Flux2Transformer2DModel: flux2_call, ZImageTransformer2DModel: z_image_call}
    call, shape = calls[network_class](denoiser, args.batch, side, tokens, draw, args.device)
    target = draw(*shape)
    network = torch.compile(denoiser, mode=args.compile) if args.compile else denoiser

    def step():
        loss = (call(network) - target).float().square().mean()
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
                tokens=tokens,
                dtype=args.dtype,
                base_precision=args.quantize or "none",
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
