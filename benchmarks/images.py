"""Zero-shot accuracy of similarity by settings of the embedded encoder's image side and memory.

Nothing is trained and no LLM takes part: of five options the one whose "question option" is most
similar to any frame. The settings were chosen on the photographs of photos.jsonl (see
photos.py); give `--clips` a folder of videos with a qa.jsonl to see what the choice is worth
elsewhere.

    python benchmarks/images.py [--packages SITE_PACKAGES] [--clips DIR]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional

from photos import find
from topa.eval.metrics import accuracy_report
from topa.features.conse import PROMPTS, TEMPERATURE, TOP_K, ConseEncoder, class_texts
from topa.features.memory import Memory, build_memory
from topa.features.video import read_clip
from topa.runs import read_jsonl

TAUS = (20.0, 30.0, 50.0, 100.0)
VIEWS = ("whole", "mirrored", "centre", "corner 1", "corner 2", "corner 3", "corner 4")


@dataclass(frozen=True)
class Questions:
    """Questions about videos, and the images of each video."""

    rows: list[dict]
    names: list[str]
    images: list[list[Image.Image]]


def view(image: Image.Image, name: str) -> Image.Image:
    """Return one way of looking at an image."""
    if name == "mirrored":
        return ImageOps.mirror(image)
    if name == "centre":
        side = min(image.size)
        return ImageOps.fit(image, (side, side))
    if name.startswith("corner"):
        across, down = divmod(int(name[-1]) - 1, 2)
        box = (0.4 * across, 0.4 * down, 0.4 * across + 0.6, 0.4 * down + 0.6)
        sizes = (*image.size, *image.size)
        return image.crop(tuple(round(part * size) for part, size in zip(box, sizes, strict=True)))  # type: ignore[arg-type]
    return image


def combine(
    logits: Sequence[Tensor],
    classes: Tensor,
    *,
    sharpness: float = TEMPERATURE,
    top_k: int = TOP_K,
    centring: float = 1.0,
) -> Tensor:
    """Return image features [n, d] from logits [n, 1000] of one or more views (ConSE)."""
    posterior = torch.stack([(one / sharpness).softmax(-1) for one in logits]).mean(0)
    weights, places = posterior.topk(top_k)
    weights = weights / weights.sum(-1, keepdim=True)
    mixed = torch.einsum("nk,nkd->nd", weights, classes[places])
    return functional.normalize(mixed - centring * classes.mean(0), dim=-1)


def accuracy(questions: Questions, texts: Tensor, features: Tensor) -> str:
    """Return accuracy and its error as a cell of a table."""
    lengths = [len(images) for images in questions.images]
    shown = dict(zip(questions.names, features.split(lengths), strict=True))
    right, at = [], 0
    for row in questions.rows:
        options = texts[at : at + len(row["options"])]
        at += len(row["options"])
        right.append(int((options @ shown[row["video"]].T).amax(1).argmax()) == row["answer"])
    groups = [row["video"] for row in questions.rows]
    counts = [len(row["options"]) for row in questions.rows]
    found = accuracy_report(right, groups, counts, [None] * len(right))
    return f"{100 * found['accuracy']:.1f} ± {100 * found['stderr']:.1f}"


def compare(questions: Questions, encoder: ConseEncoder, memory: Memory, brief: bool) -> None:
    """Print accuracy by settings, without the memory and at several temperatures of it."""
    texts = encoder.encode_text(
        [f"{row['question']} {option}" for row in questions.rows for option in row["options"]]
    )
    images = [image for video in questions.images for image in video]
    names = VIEWS[:1] if brief else VIEWS
    logits = {
        name: encoder._image_tower.logits([view(image, name) for image in images]) for name in names
    }
    embedded = encoder._text_tower.embed([text for column in class_texts() for text in column])
    prompts = functional.normalize(embedded, dim=-1).unflatten(0, (len(PROMPTS), -1))
    classes = functional.normalize(prompts.sum(0), dim=-1)
    whole = [logits["whole"]]
    found = {"as shipped": combine(whole, classes)}
    if not brief:
        for value in (1.0, 2.0, 3.0):
            found[f"class temperature {value}"] = combine(whole, classes, sharpness=value)
        for count in (5, 50, 1000):
            found[f"{count} classes"] = combine(whole, classes, top_k=count)
        for part in (0.0, 0.5):
            found[f"centring {part}"] = combine(whole, classes, centring=part)
        for prompt, column in zip(PROMPTS, prompts, strict=True):
            found[f"prompt {prompt} alone"] = combine(whole, column)
        found["and mirrored"] = combine([*whole, logits["mirrored"]], classes)
        found["centre square"] = combine([logits["centre"]], classes)
        corners = [logits[name] for name in VIEWS[3:]]
        found["and four corners"] = combine([*whole, *corners], classes)
    print("| setting | no memory | " + " | ".join(f"tau {tau:g}" for tau in TAUS) + " |")
    print("|---" * (2 + len(TAUS)) + "|")
    for name, features in found.items():
        cells = [accuracy(questions, texts, features)]
        for tau in TAUS:
            memory.temperature = tau
            cells.append(accuracy(questions, texts, memory.project(features)))
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    print(f"N {len(questions.rows)}, chance 20%\n")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--packages", type=Path, help="more site-packages to find photographs in")
    parser.add_argument("--clips", type=Path, help="a folder of videos and a qa.jsonl")
    options = parser.parse_args()
    encoder = ConseEncoder()
    memory = build_memory(["textvid", "everyday"], encoder)
    if options.clips:
        rows = [row for _, row in read_jsonl(options.clips / "qa.jsonl")]
        names = list(dict.fromkeys(row["video"] for row in rows))
        images = [read_clip(options.clips / name).images for name in names]
        compare(Questions(rows, names, images), encoder, memory, brief=True)
        return
    folders = [Path(path) for path in sys.path if path.endswith("site-packages")]
    folders += [options.packages] if options.packages else []
    found = [row for _, row in read_jsonl(Path(__file__).parent / "photos.jsonl")]
    rows = [{**row, "video": row["photo"]} for row in found]
    names = list(dict.fromkeys(row["video"] for row in rows))
    images = [[Image.open(find(name, folders)).convert("RGB")] for name in names]
    compare(Questions(rows, names, images), encoder, memory, brief=False)


if __name__ == "__main__":
    main()
