"""Reference vectors for the tokenizer, the judges and the resampling.

Writes crates/soda-models/tests/fixtures/judges.safetensors, which tests/judges.rs compares with.
Everything is computed by transformers and Pillow from the bundled assets, in float32.

    pip install torch transformers pillow safetensors
    python docs/parity/judges.py
"""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import save_file
from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer, ViTImageProcessorPil, ViTModel

ROOT = Path(__file__).resolve().parents[2]
TOYBOX = ROOT / "examples" / "toybox"
FIXTURES = ROOT / "crates" / "soda-models" / "tests" / "fixtures"
TRUTH = TOYBOX / "subjects" / "castle_mug" / "truth"
REFERENCES = TOYBOX / "subjects" / "castle_mug"

# What a tokenizer can get wrong: normal forms, case, special tokens inside a text, white space and
# control characters, contractions, digits, scripts, emoji, and length.
STRINGS = [
    "",
    " ",
    "a photo of a sks mug on a beach",
    "A PHOTO of a SKS Mug",
    "  leading and   inner   spaces  ",
    "tab\tnew\nline\r\nreturn\x0bvertical\x0cfeed",
    "it's we're they'll I'd don't I'm you've 's",
    "IT'S DON'T",
    "can\u2019t typographic \u201cquotes\u201d",
    "0123456789 3.14 1,000",
    "\u00b2\u00b3\u00bd \u2160\u216b \u0663\u0664",
    "hello,world!!! (what?) [yes] {no} <tag> a_b-c d/e\\f @#$%^&*~`|",
    "caf\u00e9",
    "cafe\u0301",
    "\u00c5ngstr\u00f6m \u212b A\u030a",
    "na\u00efve fa\u00e7ade \u00fcber stra\u00dfe STRASSE \u1e9e",
    "\u0130stanbul \u0131 \u017f \u03a3\u03a3 \u03c2",
    "\ufb01 \ufb03 ligatures",
    "\u1112\u1161\u11ab\u1100\u1173\u11af",
    "\ud55c\uad6d\uc5b4 \uc0ac\uc9c4",
    "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8",
    "\u4e00\u53ea\u732b\u5728\u96ea\u5730\u91cc",
    "\uff26\uff55\uff4c\uff4c\uff57\uff49\uff44\uff54\uff48",
    "\u043f\u0440\u0438\u0432\u0435\u0442 \u041c\u0418\u0420",
    "\u03b1\u03b2\u03b3 \u0391\u0392\u0393",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645",
    "\u05e9\u05dc\u05d5\u05dd",
    "\u0939\u093f\u0928\u094d\u0926\u0940 \u092d\u093e\u0937\u093e",
    "\u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22",
    "\u12a0\u121b\u122d\u129b",
    "\U0001f600",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 family",
    "\U0001f44d\U0001f3fd skin \U0001f1e9\U0001f1ea flag",
    "\u2764\ufe0f heart \u2603 snowman",
    "\U0001d49c\U0001d4b7\U0001d4b8 math",
    "\U00020000 beyond the plane",
    "nul\x00byte",
    "\x01\x02\x1b[31mescape\x7f",
    "\u0085next\u00a0nbsp\u3000wide\u2009thin\u200bzero\ufeffbom",
    "\u202eright to left\u202c",
    "\ufffd replacement \uffff nonchar",
    "<|startoftext|>",
    "<|endoftext|>",
    "a <|endoftext|> b",
    "a<|startoftext|>b<|endoftext|>c",
    "<|ENDOFTEXT|> <|StartOfText|>",
    "<| endoftext |> <|endoftext",
    "sks zwx qvj xyk",
    "skszwx sks2 sks's",
    "a</w>b </w>",
    "\u0120hello \u010a",
    "supercalifragilisticexpialidocious",
    "antidisestablishmentarianism " * 3,
    "https://example.org/a?b=c&d=%20#e",
    "me@example.org +1 (555) 010-9999",
    "a a a a a a a a",
    "a " * 75,
    "a " * 76,
    "a red ball " * 40,
    "x" * 400,
    "\U0001f600" * 60,
    "0" * 76,
    "a\u0301" * 50,
    "word" * 2500,
]

# Odd sizes: smaller, larger, stretched, one pixel, unchanged in one direction.
SIZES = [(37, 53), (17, 17), (1, 1), (64, 29), (200, 121), (100, 70), (5, 90), (63, 65)]
FILTERS = {"lanczos": Image.LANCZOS, "bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC}
# Enough for a difference of rounding to show, and few enough for a repository.
FILTER_SIZES = [(37, 53), (5, 90), (70, 64)]


def photo() -> Image.Image:
    """A picture that is neither square nor of the judges' size, as users' photos are."""
    tiles = Image.new("RGB", (3 * 64, 2 * 64))
    for index in range(6):
        tile = Image.open(TRUTH / f"{index:02}.png").convert("RGB")
        tiles.paste(tile, (64 * (index % 3), 64 * (index // 3)))
    return tiles.crop((0, 0, 187, 121))


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Of every row of a with every row of b, `[len(a), len(b)]`."""
    a, b = a.double(), b.double()
    return (a / a.norm(dim=1, keepdim=True)) @ (b / b.norm(dim=1, keepdim=True)).T


def main() -> None:
    torch.set_grad_enabled(False)
    truth = [json.loads(line) for line in (TRUTH / "metadata.jsonl").read_text().splitlines()]
    prompts = [line["text"].replace("sks ", "") for line in truth]
    images = [Image.open(TRUTH / line["file_name"]).convert("RGB") for line in truth]
    references = [Image.open(REFERENCES / f"{i:02}.png").convert("RGB") for i in range(5)]
    out = {}

    clip = CLIPModel.from_pretrained(TOYBOX / "eval/clip", dtype=torch.float32).eval()
    tokenizer = CLIPTokenizer.from_pretrained(TOYBOX / "eval/clip")
    clip_pixels = CLIPImageProcessorPil.from_pretrained(TOYBOX / "eval/clip")
    dino = ViTModel.from_pretrained(
        TOYBOX / "eval/dino", dtype=torch.float32, add_pooling_layer=False
    ).eval()
    dino_pixels = ViTImageProcessorPil.from_pretrained(TOYBOX / "eval/dino")

    def features(pictures, processor, model):
        pixels = processor(images=pictures, return_tensors="pt")["pixel_values"]
        if model is dino:
            return pixels, dino(pixel_values=pixels).last_hidden_state
        return pixels, clip.get_image_features(pixel_values=pixels).pooler_output

    # Tokens. The longest string is as the trainers see it: cut, with the end token kept.
    def tokens(texts):
        padding = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        return tokenizer(texts, **padding)["input_ids"]

    base = CLIPTokenizer.from_pretrained(TOYBOX / "base/tokenizer")
    assert base.get_vocab() == tokenizer.get_vocab()
    out["ids"] = tokens(STRINGS).to(torch.int32)
    lengths = [len(tokenizer(text)["input_ids"]) for text in STRINGS]
    out["truncated"] = torch.tensor([length > 77 for length in lengths]).to(torch.int32)

    # The judges, on pictures of their own size and on one that must be resized.
    ids = tokens(prompts)
    text = clip.get_text_features(input_ids=ids).pooler_output
    _, image = features(images, clip_pixels, clip)
    _, image_ref = features(references, clip_pixels, clip)
    _, hidden = features(images, dino_pixels, dino)
    _, hidden_ref = features(references, dino_pixels, dino)
    out["text_features"] = text
    out["image_features"] = image
    out["dino_hidden"] = hidden[:1]
    out["dino_features"] = hidden[:, 0]
    out["clip_t"] = cosine(image, text).diagonal()
    out["clip_i"] = cosine(image, image_ref).mean(1)
    out["clip_i_pairs"] = cosine(image[:5], image_ref).diagonal()
    out["dino"] = cosine(hidden[:, 0], hidden_ref[:, 0]).mean(1)
    out["dino_pairs"] = cosine(hidden[:5, 0], hidden_ref[:, 0]).diagonal()

    large = photo()
    out["photo"] = torch.from_numpy(np.asarray(large).copy())
    for name, processor, model in [("clip", clip_pixels, clip), ("dino", dino_pixels, dino)]:
        pixels, value = features([large, large.rotate(90, expand=True)], processor, model)
        out[f"photo.{name}_pixels"] = pixels[:1]
        out[f"photo.{name}"] = value[:, 0] if model is dino else value

    # Pillow's resampling, of a tall picture too: it is resized vertically first.
    tall = np.asarray(large.rotate(90, expand=True).resize((64, 64), Image.BILINEAR)).copy()
    out["tall.bilinear.64x64"] = torch.from_numpy(tall)
    for name, kernel in FILTERS.items():
        for width, height in SIZES if name == "lanczos" else FILTER_SIZES:
            small = np.asarray(large.resize((width, height), kernel)).copy()
            out[f"resize.{name}.{width}x{height}"] = torch.from_numpy(small)

    narrow = {torch.float64: torch.float32}
    arrays = {k: v.to(narrow.get(v.dtype, v.dtype)).contiguous().numpy() for k, v in out.items()}
    FIXTURES.mkdir(exist_ok=True)
    metadata = {"strings": json.dumps(STRINGS), "prompts": json.dumps(prompts)}
    save_file(arrays, FIXTURES / "judges.safetensors", metadata)
    size = (FIXTURES / "judges.safetensors").stat().st_size
    print(f"{len(arrays)} tensors, {len(STRINGS)} strings, {size} bytes")


if __name__ == "__main__":
    main()
