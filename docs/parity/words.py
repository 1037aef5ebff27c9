"""New words of the bundled model by diffusers: tokens, text states, and the way back.

    python docs/parity/words.py
        writes crates/soda-models/tests/fixtures/words.safetensors: the vectors of two words, prompts that say them, and what
        diffusers' `load_textual_inversion` and `encode_prompt` make of those.
    python docs/parity/words.py --check MERGED EMBEDDINGS
        holds a directory of `soda merge` and one of `soda export --format embeddings`, both of an adapter with these words,
        against the same: tokens equal, states to 1e-4.

    pip install torch diffusers transformers safetensors
"""

import json
import sys
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "examples" / "toybox" / "base"
FIXTURE = ROOT / "crates" / "soda-models" / "tests" / "fixtures" / "words.safetensors"

# Punctuation beside a word, an ending, twice, at the end, cut off, alone, and none at all. Not the word in capitals, of which
# diffusers keeps the first vector only, nor inside another ("zorbs"), where it finds it and soda does not.
PROMPTS = [
    "a photo of a <mug> on a beach",
    "A PHOTO OF A <mug>, and a zorb.",
    "<mug>s, zorb zorb",
    "<mug>",
    "a <mug>! (zorb)",
    " ".join(["red"] * 74 + ["<mug>"]),
    "a red mug",
]
KEPT = 16


def vectors():
    g = torch.Generator().manual_seed(3)
    stored = load_file(BASE / "text_encoder" / "model.safetensors")
    table = next(rows for name, rows in stored.items() if name.endswith("token_embedding.weight")).float()
    near = lambda rows: table[rows] + 0.02 * torch.randn(len(rows), table.shape[1], generator=g)
    return {"<mug>": near([621, 40, 41]), "zorb": near([7])}


def load(base):
    pipe = StableDiffusionPipeline.from_pretrained(base, safety_checker=None, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def read(pipe):
    """Tokens and states of the prompts."""
    said = [pipe.maybe_convert_prompt(prompt, pipe.tokenizer) for prompt in PROMPTS]
    ids = pipe.tokenizer(said, padding="max_length", truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        states = pipe.text_encoder(ids).last_hidden_state
    return ids.int(), states[:, :KEPT].contiguous()


def expected():
    pipe = load(BASE)
    for word, rows in vectors().items():
        pipe.load_textual_inversion({word: rows})
    return read(pipe)


def check(merged, embeddings):
    ids, states = expected()
    alone = load(BASE)
    for file in sorted(Path(embeddings).glob("*.safetensors")):
        alone.load_textual_inversion(file)
    for name, pipe in (("merged", load(merged)), ("embeddings", alone)):
        found, told = read(pipe)
        assert (found == ids).all(), name
        error = (told - states).abs().max().item()
        print(name, "tokens equal, states to", error)
        assert error < 1e-4, name


if sys.argv[1:2] == ["--check"]:
    check(*sys.argv[2:])
else:
    ids, states = expected()
    tensors = {f"vectors.{word}": rows.contiguous() for word, rows in vectors().items()}
    save_file(tensors | {"ids": ids, "states": states}, FIXTURE, {"prompts": json.dumps(PROMPTS)})
    print(FIXTURE.name, FIXTURE.stat().st_size, "bytes")
