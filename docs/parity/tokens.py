"""Reference token ids of 200 hard strings.

Writes crates/soda-models/tests/fixtures/tokens.json, which tests/tokens.rs compares with: each
string and its ids by transformers, without the padding.

    pip install transformers
    python docs/parity/tokens.py
"""

import json
import sys
from pathlib import Path

from transformers import CLIPTokenizer

sys.path.append(str(Path(__file__).parent))
from judges import FIXTURES, STRINGS, TOYBOX

# Blocks of Unicode that break tokenizers: scripts, marks, digits, punctuation, symbols, private use.
BLOCKS = [
    0x0000, 0x0080, 0x0100, 0x0180, 0x0250, 0x02B0, 0x0300, 0x0370, 0x0400, 0x0530, 0x0590, 0x0600,
    0x0660, 0x0700, 0x0900, 0x0980, 0x0B80, 0x0E00, 0x0E80, 0x0F00, 0x1000, 0x10A0, 0x1100, 0x1200,
    0x13A0, 0x1400, 0x1680, 0x16A0, 0x1780, 0x1800, 0x1E00, 0x1E90, 0x1F00, 0x2000, 0x2028, 0x2060,
    0x2070, 0x20A0, 0x20D0, 0x2100, 0x2150, 0x2190, 0x2200, 0x2300, 0x2400, 0x2460, 0x2500, 0x2600,
    0x2700, 0x2800, 0x2C00, 0x2E80, 0x3000, 0x3040, 0x30A0, 0x3130, 0x3200, 0x4E00, 0x9FA0, 0xA000,
    0xAC00, 0xE000, 0xF900, 0xFB00, 0xFE00, 0xFE20, 0xFF00, 0xFFE0, 0xFFF0, 0x10000, 0x10300,
    0x12000, 0x1D100, 0x1D400, 0x1F1E6, 0x1F300, 0x1F3FB, 0x1F600, 0x1F680, 0x1F900, 0x20000,
    0x2F800, 0xE0000, 0xE0100, 0x10FFF0,
]
PAIRS = [
    "a{}b", "{0} {0}", "sks{}mug", "{}'s", "{0}{0}{0} 1{0}2", "<|startoftext|>{}<|endoftext|>",
    "RED {} Ball", "it{}'ll", "caf{}e\u0301", "({})",
]


def strings() -> list[str]:
    out = list(STRINGS)
    out.append(" ".join(f"word{i}" for i in range(1000)))
    out.append(" ".join(["a photo of a red ball on a beach"] * 125))
    for index, start in enumerate(BLOCKS):
        block = "".join(chr(start + i) for i in range(16) if start + i < 0x110000)
        out.append(block)
        out.append(PAIRS[index % len(PAIRS)].format(block[index % 16]))
    return list(dict.fromkeys(out))


def main() -> None:
    tokenizer = CLIPTokenizer.from_pretrained(TOYBOX / "base/tokenizer")
    table = []
    for text in strings():
        ids = tokenizer(text, truncation=True)["input_ids"]
        table.append([text, ids, len(tokenizer(text)["input_ids"]) > len(ids)])
    path = FIXTURES / "tokens.json"
    path.write_text(json.dumps(table, separators=(",", ":")) + "\n")
    print(f"{len(table)} strings, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
