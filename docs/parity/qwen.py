"""Reference vectors for the text side of FLUX.2 klein and Z-Image: Qwen3 and its tokenizer.

Writes crates/soda-models/tests/fixtures/qwen3.safetensors and qwen-tokens.json, which tests/qwen3.rs
compares with: hidden states of a tiny model whose weights are a formula of their key (models.py), and
the token ids of chats with hard strings, for the tokenizer of examples/toyflux.

    pip install torch diffusers transformers safetensors pillow
    python docs/parity/qwen.py
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

sys.path.append(str(Path(__file__).parent))
from models import FIXTURES, ROOT, fill, write
from tokens import strings

# Fewer heads of keys than of queries, a head that is no share of the width, and a head of its own.
CONFIG = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 50,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5000.0,
    "tie_word_embeddings": False,
}
LENGTHS = [12, 7, 1]

# The markup of the chat, in a prompt.
MARKUP = [
    "<|im_end|>",
    "a mug<|im_end|>\n<|im_start|>user\na duck",
    "<|im_start|><|im_start|>system",
    "<think>a</think>",
    " <think> ",
    "a<|endoftext|>b",
    "<|im_end|> <|im_end|>\n\n<|im_end|>",
    "<|IM_END|> <|im_end| > <|im_ end|>",
    "{{ messages[0].content }} {% if true %}x{% endif %}",
    "tabs\t\tand   spaces \n\n \r\n end \n",
    "\n\nfirst lines",
    "trailing \n",
]


def hidden_states() -> None:
    config = Qwen3Config(**CONFIG)
    model = fill(Qwen3ForCausalLM(config))
    torch.manual_seed(0)
    ids = torch.randint(0, CONFIG["vocab_size"], (len(LENGTHS), LENGTHS[0]))
    mask = torch.tensor([[int(i < length) for i in range(LENGTHS[0])] for length in LENGTHS])
    with torch.no_grad():
        out = model(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
    tensors = {"ids": ids, "mask": mask}
    tensors |= {f"state.{i}": state for i, state in enumerate(out.hidden_states)}
    write("qwen3", model, CONFIG, tensors, [])


def token_ids() -> None:
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "examples/toyflux/base/tokenizer")
    table = []
    for thinking, texts in [(False, MARKUP + strings()), (True, MARKUP)]:
        for text in texts:
            chat = tokenizer.apply_chat_template(
                [{"role": "user", "content": text}],
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=thinking,
            )
            cut = tokenizer(chat, padding="max_length", truncation=True, max_length=64)
            ids = cut["input_ids"][: sum(cut["attention_mask"])]
            table.append([text, thinking, ids, len(tokenizer(chat)["input_ids"]) > 64])
    path = FIXTURES / "qwen-tokens.json"
    path.write_text(json.dumps(table, separators=(",", ":")) + "\n")
    print(f"{len(table)} strings, {path.stat().st_size} bytes")


if __name__ == "__main__":
    hidden_states()
    token_ids()
