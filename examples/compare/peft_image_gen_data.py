"""Makes the folder of pictures that `peft-image-gen.toml` trains on, from the data set of PEFT's benchmark.

    pip install datasets numpy pillow
    git clone https://github.com/huggingface/peft
    python examples/compare/peft_image_gen_data.py --peft peft --out peft-image-gen/cat

PEFT's `method_comparison/image-gen/default_training_params.json` names the data set, a caption for each picture,
and how many pictures are kept for validation and for the test. The split is that of its `data.py`: a permutation
by numpy's seed 0, first the training pictures, then validation, then test. This script writes

    cat/*.png, cat/metadata.jsonl    the training pictures and their captions
    cat/subject.json                 the captions of the test pictures, which are drawn and scored
    cat/truth/                       the test pictures, by caption

The validation pictures are left out: PEFT draws their captions during training, `soda` those of the test.
Pictures keep their size: `soda` scales the shorter side to the resolution and cuts the middle out, as PEFT does.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

PARAMS = "method_comparison/image-gen/default_training_params.json"


def split(count, valid, test):
    """The indices of the training, validation and test pictures."""
    train = count - valid - test
    if min(train, valid, test) < 1:
        sys.exit(f"{count} pictures cannot be split into {valid} for validation, {test} for the test and a rest")
    indices = np.arange(count)
    np.random.RandomState(0).shuffle(indices)
    return indices[:train], indices[train : train + valid], indices[train + valid :]


def write(folder, pictures, captions, indices):
    folder.mkdir(parents=True)
    lines = []
    for index in indices:
        name = f"{index:02}.png"
        pictures[int(index)].convert("RGB").save(folder / name)
        lines.append(json.dumps({"file_name": name, "text": captions[index]}, ensure_ascii=False))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def make(pictures, captions, valid, test, out):
    """Writes the folders."""
    if len(pictures) != len(captions):
        sys.exit(f"the data set has {len(pictures)} pictures and PEFT's settings {len(captions)} captions: use one version")
    train, _, test = split(len(pictures), valid, test)
    write(out, pictures, captions, train)
    write(out / "truth", pictures, captions, test)
    subject = {
        "name": "cat",
        "class": "cat",
        "identifier": "sks",
        "instance_prompt": "a photo of sks cat",
        "class_prompt": "a photo of cat",
        "eval_prompts": [captions[index] for index in test],
    }
    (out / "subject.json").write_text(json.dumps(subject, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peft", type=Path, required=True, help="a clone of PEFT's repository")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write; it must not exist")
    parser.add_argument("--data", help="a folder or data set in place of the one that PEFT's settings name")
    options = parser.parse_args()
    if options.out.exists():
        sys.exit(f"{options.out} exists; give another --out")
    params = json.loads((options.peft / PARAMS).read_text(encoding="utf-8"))
    from datasets import load_dataset

    pictures = load_dataset(options.data or params["dataset_id"], split=params["dataset_split"])
    pictures = [row[params["image_column"]] for row in pictures]
    make(pictures, params["instance_prompts"], params["valid_size"], params["test_size"], options.out)
    print(options.out)


if __name__ == "__main__":
    main()
