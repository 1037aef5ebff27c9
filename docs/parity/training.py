"""Six training steps of every method and loss on the bundled model, with diffusers' UNet, in float64.

    python docs/parity/training.py
        writes crates/soda-train/tests/fixtures/training.safetensors: noisy latents, text states and targets
        of six steps; and for every case the adapter it starts from, its losses, and where it ends.

In the cases `*-text`, of training_text.safetensors, the text encoder (transformers' CLIP) learns as well, at a rate of its own, from the tokens.
In the cases `*-words`, of training_words.safetensors, the vectors of new tokens learn, which stand behind the table of all others; DCO's frozen
prediction is told what they were.

The optimizers are written out from their papers' formulas (momentum Stiefel Adam, arXiv 2205.14173; AdamW by
torch). Needs torch, diffusers 0.42, transformers 5, safetensors.
"""

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch.func import functional_call
from torch.nn.functional import logsigmoid, relu
from transformers import CLIPTextModel

ROOT = Path(__file__).parents[2]
STEPS, BATCH, LR, TEXT_LR, WORD_LR, BETA = 6, 3, 5e-3, 1e-3, 2e-3, 1000.0
WORDS = "text_encoder.text_model.embeddings.new_tokens"
PATHS = [f"mid_block.attentions.0.transformer_blocks.0.{a}.{p}.weight"
         for a in ("attn1", "attn2") for p in ("to_q", "to_k")]
TEXT_PATHS = [f"text_model.encoder.layers.{i}.self_attn.{p}.weight" for i in (0, 2) for p in ("q_proj", "out_proj")]
FACTORS = {160: [4, 5, 8]}


def orthogonal(x):
    u, _, vt = torch.linalg.svd(x)
    return u @ vt


def start(method, w, g):
    """An adapter a little way from the identity, by name of the parameter; w is [in, out], or [vectors, width] of words."""
    if method == "words":
        return {"vectors": w}
    n, k = w.shape[0], min(w.shape)
    normal = lambda *shape, scale: torch.randn(*shape, generator=g, dtype=torch.float64) * scale
    if method == "lora":
        return {"a": normal(n, 4, scale=n**-0.5), "b": normal(4, w.shape[1], scale=0.02)}
    parts = {}
    if method != "svdiff":
        for i, size in enumerate(FACTORS[n]):
            parts[f"rotation.factors.{i}"] = orthogonal(torch.eye(size) + normal(size, size, scale=0.02))
    parts["spectrum.delta"] = normal(k, scale=0.02)
    return parts


def basis(method, w):
    if method in ("soda", "svdiff"):
        return torch.linalg.svd(w, full_matrices=False)
    if method == "soda-qr":
        q, r = torch.linalg.qr(w)
        return q * torch.where(r.diagonal() < 0, -1.0, 1.0)
    return None


def adapted(method, w, basis, parts):
    if method == "lora":
        return w + parts["a"] @ parts["b"]
    delta = parts["spectrum.delta"]
    if method == "soda-qr":
        shift = torch.nn.functional.pad(basis * delta, (0, w.shape[1] - basis.shape[1]))
    else:
        u, s, vt = basis
        shift = (u * (relu(s + delta) - s)) @ vt
    w = w + shift
    if method == "svdiff":
        return w
    rotation = torch.ones(1, 1)
    for name in sorted(n for n in parts if n.startswith("rotation")):
        rotation = torch.kron(rotation, parts[name])
    return rotation @ w


class StiefelAdam:
    """Square matrices, canonical metric, Euler's map."""

    def __init__(self, points):
        """Pairs of a point and its learning rate."""
        self.points, self.lrs, self.time = [x for x, _ in points], [lr for _, lr in points], 0
        self.moments = [(torch.zeros_like(x), torch.zeros_like(x)) for x, _ in points]

    @torch.no_grad()
    def step(self):
        self.time += 1
        for i, x in enumerate(self.points):
            a = x.T @ x.grad
            g = a - a.T
            y, p = self.moments[i]
            y, p = 0.9 * y - 0.1 * g, 0.999 * p + 0.001 * g * g
            self.moments[i] = (y, p)
            z = self.lrs[i] / (1 - 0.9**self.time) * y / ((p / (1 - 0.999**self.time)).sqrt() + 1e-5)
            x.copy_(orthogonal(x + x @ z))


def main():
    torch.set_default_dtype(torch.float64)
    base = ROOT / "examples/toybox/base"
    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet").double().requires_grad_(False)
    encoder = CLIPTextModel.from_pretrained(base, subfolder="text_encoder", attn_implementation="eager")
    encoder = encoder.double().requires_grad_(False)
    g = torch.Generator().manual_seed(0)
    c = unet.config
    latents = lambda: torch.randn(STEPS, BATCH, c.in_channels, c.sample_size, c.sample_size, generator=g)
    # Rounded to what the file holds, so that both sides compute on the same numbers.
    single = lambda x: x.float().double()
    noisy, target = single(latents()), single(latents())
    text = single(torch.randn(BATCH, 12, c.cross_attention_dim, generator=g))
    t = torch.randint(0, 1000, (STEPS, BATCH), generator=g)
    out = {"noisy": noisy, "target": target, "text": text, "timesteps": t}
    key = lambda path: path if path in dict(encoder.named_parameters()) else path.removeprefix("text_model.")
    weights = {f"unet.{path}": unet.get_parameter(path).T.clone() for path in PATHS}
    text_weights = {f"text_encoder.{path}": encoder.get_parameter(key(path)).T.clone() for path in TEXT_PATHS}

    table = key("text_model.embeddings.token_embedding.weight")

    def run(name, method, weights, losses_of, g):
        of = lambda path: "words" if path == WORDS else method
        bases = {path: basis(of(path), w) for path, w in weights.items()}
        draw = lambda: {path: {k: single(v) for k, v in start(of(path), w, g).items()} for path, w in weights.items()}
        # Adam's first step is the gradient's sign, which float32 cannot tell where the gradient is as good as zero: such a start
        # is drawn again.
        while not trained(name, method, weights, losses_of, bases, draw()):
            print(name, "drawn again")

    def trained(name, method, weights, losses_of, bases, first):
        for loss_name in losses_of:
            parts = {p: {k: v.clone().requires_grad_() for k, v in ps.items()} for p, ps in first.items()}
            rate = lambda path: LR if path.startswith("unet.") else WORD_LR if path == WORDS else TEXT_LR
            flat = [(k, v, rate(p)) for p, ps in parts.items() for k, v in ps.items()]
            rotations = StiefelAdam([(v, lr) for k, v, lr in flat if k.startswith("rotation")])
            others = torch.optim.AdamW([{"params": [v], "lr": lr} for k, v, lr in flat if not k.startswith("rotation")],
                                       weight_decay=1e-4)
            losses = []
            for step in range(STEPS):
                def errors(replaced):
                    inside = lambda network: {path.removeprefix(network): w for path, w in replaced.items()
                                              if path.startswith(network)}
                    told = text
                    if name.endswith(("-text", "-words")):
                        of_text = {key(path): w for path, w in inside("text_encoder.").items() if path != WORDS.partition(".")[2]}
                        if WORDS in replaced:
                            of_text[table] = torch.cat([encoder.get_parameter(table), replaced[WORDS]])
                        told = functional_call(encoder, of_text, (word_ids if WORDS in replaced else ids,)).last_hidden_state
                    sample = functional_call(unet, inside("unet."), (noisy[step], t[step], told)).sample
                    return (sample - target[step]).square().mean((1, 2, 3))

                new = {p: parts[p]["vectors"] if p == WORDS else adapted(method, w, bases[p], parts[p]).T
                       for p, w in weights.items()}
                error = errors(new)
                if loss_name == "dco":
                    error = -logsigmoid(-BETA * (error - errors({p: w for p, w in weights.items() if p == WORDS})))
                loss = error.mean()
                losses.append(loss.item())
                for _, v, _ in flat:
                    v.grad = None
                loss.backward()
                smallest = lambda grad: (grad[grad != 0].abs() / grad.abs().max()).min()
                if step == 0 and any(smallest(v.grad) < 1e-5 for k, v, _ in flat if not k.startswith("rotation")):
                    return False
                torch.nn.utils.clip_grad_norm_([v for _, v, _ in flat], 1.0)
                rotations.step()
                others.step()
            case = f"{name}/{loss_name}"
            print(case, losses)
            out[f"{case}/losses"] = torch.tensor(losses)
            for path in weights:
                for part, value in parts[path].items():
                    marker = "" if path == WORDS else "adapter."
                    out[f"{name}/start/{path}.{marker}{part}"] = first[path][part]
                    out[f"{case}/end/{path}.{marker}{part}"] = value.detach()
        return True

    for method in ("soda", "soda-qr", "svdiff", "lora"):
        run(method, method, weights, ("mse", "dco"), g)
    # Words of the vocabulary between start and end, as many as a caption has, and the padding.
    begin, end = encoder.config.bos_token_id, encoder.config.eos_token_id
    ids = torch.full((BATCH, encoder.config.max_position_embeddings), end)
    for row, words in enumerate((4, 9, 2)):
        ids[row, 0] = begin
        ids[row, 1:words + 1] = torch.randint(0, begin, (words,), generator=g)
    out["ids"] = ids
    both = weights | text_weights
    run("soda-text", "soda", both, ("mse", "dco"), g)
    run("lora-text", "lora", both, ("mse",), g)
    # Two captions have the word, which stands for two tokens, in different places; one is without.
    known = encoder.get_parameter(table)
    word_ids = ids.clone()
    word_ids[0, 2], word_ids[0, 3] = len(known), len(known) + 1
    word_ids[1, 5], word_ids[1, 6] = len(known), len(known) + 1
    out["word_ids"] = word_ids
    # A little off the rows that they start from: a fresh word would have the frozen prediction's own.
    vectors = single(known[[40, 41]] + 0.02 * torch.randn(2, known.shape[1], generator=g))
    words = {WORDS: vectors}
    run("soda-words", "soda", both | words, ("mse",), g)
    run("lora-words", "lora", weights | words, ("mse", "dco"), g)
    of_words = {name for name in out if "-words/" in name or name == "word_ids"}
    of_text = {name for name in out if "-text/" in name or name == "ids"}
    for file, names in (("training", out.keys() - of_text - of_words), ("training_text", of_text), ("training_words", of_words)):
        fixture = ROOT / f"crates/soda-train/tests/fixtures/{file}.safetensors"
        save_file({name: out[name].float().contiguous() if out[name].is_floating_point() else out[name].int().contiguous()
                   for name in sorted(names)}, fixture)
        print(fixture.name, fixture.stat().st_size, "bytes")


main()
