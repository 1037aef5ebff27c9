"""The scores of whole runs by transformers, Pillow and NumPy, in float32: nothing of this code is used.

    pip install torch transformers pillow safetensors numpy
    python docs/parity/scores.py runs/castle_mug-1
    python docs/parity/scores.py scores/mug --data photos/mug --judges eval
    python docs/parity/scores.py --fixture

The first reads a run's folder: its pictures from samples.png and unrelated.png, its prompts, data and judges from
config.toml. The second reads a folder of `soda evaluate`. Both print every score beside that of scores.json, and fail
where two differ by more than 1e-4. The third writes crates/soda-train/tests/fixtures/scores.json, which tests/scores.rs
compares with: the truths of bundled data sets, as if they had been drawn.
"""

import argparse
import json
import tomllib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoModel, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer, ViTImageProcessorPil

ROOT = Path(__file__).resolve().parents[2]
TOYBOX = ROOT / "examples" / "toybox"
FIXTURE = ROOT / "crates" / "soda-train" / "tests" / "fixtures" / "scores.json"
TOLERANCE = 1e-4
# Of the grids: white between the pictures.
MARGIN = 4
PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}


class Judges:
    """CLIP and DINO (or DINOv2) of a folder, each with what it reads pictures by."""

    def __init__(self, folder: Path) -> None:
        torch.set_grad_enabled(False)
        clip, dino = folder / "clip", folder / "dino"
        self.clip = CLIPModel.from_pretrained(clip, dtype=torch.float32).eval()
        self.tokenizer = CLIPTokenizer.from_pretrained(clip)
        self.clip_pixels = CLIPImageProcessorPil.from_pretrained(clip)
        self.dino = AutoModel.from_pretrained(dino, dtype=torch.float32).eval()
        kind = json.loads((dino / "preprocessor_config.json").read_text())
        bit = kind.get("image_processor_type", "").startswith("Bit")
        processor = CLIPImageProcessorPil if bit else ViTImageProcessorPil
        self.dino_pixels = processor.from_pretrained(dino)

    def by_clip(self, images: list[Image.Image]) -> np.ndarray:
        pixels = self.clip_pixels(images=images, return_tensors="pt")["pixel_values"]
        return unit(self.clip.get_image_features(pixel_values=pixels).pooler_output)

    def by_dino(self, images: list[Image.Image]) -> np.ndarray:
        pixels = self.dino_pixels(images=images, return_tensors="pt")["pixel_values"]
        return unit(self.dino(pixel_values=pixels).last_hidden_state[:, 0])

    def by_text(self, prompts: list[str]) -> np.ndarray:
        ids = self.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt")
        return unit(self.clip.get_text_features(input_ids=ids["input_ids"]).pooler_output)


def unit(features: torch.Tensor) -> np.ndarray:
    features = features.double().numpy()
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def score(judges: Judges, drawn: list, prompts: list[str], subject: list, truth: list) -> dict[str, float]:
    """Picture i was drawn for prompt i, and truth i shows what it asks for, where that is known."""
    clip, dino = judges.by_clip(drawn), judges.by_dino(drawn)
    scores = {
        "clip_t": (clip * judges.by_text(prompts)).sum(1).mean(),
        # Of all pairs.
        "clip_i": (clip @ judges.by_clip(subject).T).mean(),
        "dino": (dino @ judges.by_dino(subject).T).mean(),
    }
    if truth:
        scores["truth_clip_i"] = (clip * judges.by_clip(truth)).sum(1).mean()
        scores["truth_dino"] = (dino * judges.by_dino(truth)).sum(1).mean()
    return {name: float(value) for name, value in scores.items()}


def drift(judges: Judges, moved: list, untuned: list) -> dict[str, float]:
    """How far pictures have moved from those of the same prompts and noise."""
    return {
        "drift": float(1 - (judges.by_clip(moved) * judges.by_clip(untuned)).sum(1).mean()),
        "drift_dino": float(1 - (judges.by_dino(moved) * judges.by_dino(untuned)).sum(1).mean()),
    }


class Data:
    """A folder of pictures, and what it says of itself."""

    def __init__(self, folder: Path, identifier: str | None = None) -> None:
        about = [folder / name for name in ("subject.json", "style.json")]
        about = next((json.loads(path.read_text()) for path in about if path.is_file()), {})
        self.identifier = about.get("identifier", identifier)
        self.eval_prompts = about.get("eval_prompts", [])
        self.pictures = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURES)
        self.truths = {}
        if (folder / "truth").is_dir():
            lines = (folder / "truth" / "metadata.jsonl").read_text().splitlines()
            lines = [json.loads(line) for line in lines if line.strip()]
            self.truths = {line["text"]: folder / "truth" / line["file_name"] for line in lines}

    def read(self, side: int, held_out: list[str]) -> list[Image.Image]:
        """What is held out, or else all pictures."""
        paths = [path for path in self.pictures if path.name in held_out] or self.pictures
        return [square(path, side) for path in paths]

    def truth(self, prompts: list[str], side: int) -> list[Image.Image]:
        """Of all prompts or of none."""
        known = all(prompt in self.truths for prompt in prompts)
        return [square(self.truths[prompt], side) for prompt in prompts] if known else []

    def without_identifier(self, prompt: str) -> str:
        if self.identifier is None:
            return prompt
        return " ".join(word for word in prompt.split() if word != self.identifier)


def identifier(trigger: str | None) -> str | None:
    """The first of several words."""
    words = (trigger or "").split(" ")
    return words[0] if len(words) > 1 else None


def square(path: Path, side: int) -> Image.Image:
    """The largest square of the centre, by Lanczos."""
    image = Image.open(path).convert("RGB")
    least = min(image.size)
    left, top = (image.width - least) // 2, (image.height - least) // 2
    return image.crop((left, top, left + least, top + least)).resize((side, side), Image.LANCZOS)


def cells(path: Path, rows: int) -> list[list[Image.Image]]:
    """The pictures of a grid of square ones, at the size at which they were drawn."""
    grid = np.asarray(Image.open(path).convert("RGB"))
    edge = (grid.shape[0] - MARGIN) // rows - MARGIN
    columns = (grid.shape[1] - MARGIN) // (edge + MARGIN)
    starts = [MARGIN + i * (edge + MARGIN) for i in range(max(rows, columns))]
    cut = [[grid[y : y + edge, x : x + edge] for x in starts[:columns]] for y in starts[:rows]]
    # Small pictures are magnified for the eye, each pixel to a block.
    blocks = lambda cell, n: (cell == cell[::n, ::n].repeat(n, 0).repeat(n, 1)).all()
    sizes = [n for n in range(1, edge + 1) if edge % n == 0]
    times = max(n for n in sizes if all(blocks(cell, n) for row in cut for cell in row))
    return [[Image.fromarray(cell[::times, ::times].copy()) for cell in row] for row in cut]


def run(folder: Path, judges: Path | None, data: Path | None) -> dict[str, dict[str, float]]:
    """What is in the run's scores.json."""
    config = tomllib.loads((folder / "config.toml").read_text())
    told = json.loads((folder / "scores.json").read_text())
    judges = Judges(judges or Path(config["judges"]))
    data = Data(data or Path(config["data"]), identifier(config.get("trigger")))
    prompts, unrelated = config["samples"]["prompts"], config["samples"]["unrelated"]
    _, before, after = cells(folder / "samples.png", 3)
    side = before[0].width
    truth = data.truth(prompts, side)
    subject = data.read(side, told.get("held_out", []))
    asked = [data.without_identifier(prompt) for prompt in prompts]
    found = {}
    for name, drawn in [("before", before), ("after", after), ("truth", truth)]:
        if drawn:
            found[name] = score(judges, drawn[: len(prompts)], asked, subject, truth)
    if unrelated:
        untuned, moved = cells(folder / "unrelated.png", 2)
        found["before"] |= drift(judges, untuned, untuned)
        found["after"] |= drift(judges, moved, untuned)
    return found


def evaluation(folder: Path, judges: Path, data: Path) -> dict[str, dict[str, float]]:
    """What is in the scores.json of `soda evaluate`."""
    told = json.loads((folder / "scores.json").read_text())
    judges, data, prompts = Judges(judges), Data(data, told.get("identifier")), told["prompts"]
    _, drawn = cells(folder / "samples.png", 2)
    side = drawn[0].width
    asked = [data.without_identifier(prompt) for prompt in prompts]
    subject, truth = data.read(side, told.get("held_out", [])), data.truth(prompts, side)
    found = score(judges, drawn[: len(prompts)], asked, subject, truth)
    if (folder / "unrelated.png").is_file():
        untuned, moved = cells(folder / "unrelated.png", 2)
        found |= drift(judges, moved, untuned)
    return {"scores": found}


def compare(found: dict[str, dict[str, float]], told: dict) -> None:
    worst = 0.0
    for when, scores in found.items():
        for name, value in scores.items():
            theirs = told[when].get(name)
            distance = float("inf") if theirs is None else abs(value - theirs)
            worst = max(worst, distance)
            print(f"{when:<7} {name:<13} {value:+.6f}  scores.json {theirs:+.6f}  {distance:.1e}")
    print(f"largest difference {worst:.1e}")
    if not worst <= TOLERANCE:
        raise SystemExit(f"more than {TOLERANCE}")


def fixture() -> None:
    """Truths of one data set as if they had been drawn for another's prompts."""
    judges, cases = Judges(TOYBOX / "eval"), []
    for name, other in [
        ("subjects/castle_mug", "subjects/shroombot"),
        ("subjects/wizard_bear", "subjects/wizard_bear"),
        ("styles/mosaic", "styles/duotone"),
    ]:
        data, stranger = Data(TOYBOX / name), Data(TOYBOX / other)
        prompts, side = data.eval_prompts, 64
        drawn = stranger.truth(stranger.eval_prompts, side)
        truth = data.truth(prompts, side)
        asked = [data.without_identifier(prompt) for prompt in prompts]
        scores = score(judges, drawn, asked, data.read(side, []), truth)
        scores |= drift(judges, drawn, truth)
        cases.append({"data": name, "drawn": other, "asked": asked[0], "scores": scores})
    FIXTURE.write_text(json.dumps(cases, indent=1) + "\n")
    print(FIXTURE.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", help="of a run, or of soda evaluate")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--judges", type=Path)
    parser.add_argument("--fixture", action="store_true")
    args = parser.parse_args()
    if args.fixture:
        return fixture()
    if (args.folder / "config.toml").is_file():
        found = run(args.folder, args.judges, args.data)
    else:
        found = evaluation(args.folder, args.judges, args.data)
    compare(found, json.loads((args.folder / "scores.json").read_text()))


if __name__ == "__main__":
    main()
