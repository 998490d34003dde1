"""Accuracy on photographs that packages ship: the development set of the image side.

The 72 questions of photos.jsonl are ours; the photographs come from scikit-image,
scikit-learn, matplotlib, gradio, ultralytics and imgaug (their wheels; nothing of them is
imported). A photograph is a video of one frame. Used to choose settings of the embedded
encoder and memory, so its figures flatter them.

    python benchmarks/photos.py [--packages DIR ...] [--checkpoint embedded]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from PIL import Image

from topa import Topa
from topa.eval.metrics import accuracy_report
from topa.features.video import Clip
from topa.runs import read_jsonl


def find(photo: str, folders: list[Path]) -> Path:
    """Return the file of a `distribution:path` in one of the site-packages folders."""
    path = photo.partition(":")[2]
    for folder in folders:
        if (folder / path).is_file():
            return folder / path
    raise SystemExit(f"{photo} is not installed in {', '.join(map(str, folders))}")


def main() -> None:
    """Print accuracy by method, with and without the memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--packages", type=Path, nargs="*", default=[], help="more folders to find packages in"
    )
    parser.add_argument("--checkpoint", default="embedded")
    options = parser.parse_args()
    folders = [Path(path) for path in sys.path if path.endswith("site-packages")]
    folders += options.packages
    rows = [row for _, row in read_jsonl(Path(__file__).parent / "photos.jsonl")]
    names = list(dict.fromkeys(row["photo"] for row in rows))
    topa = Topa.from_pretrained(options.checkpoint)
    choices = [
        [(row["question"], row["options"]) for row in rows if row["photo"] == name]
        for name in names
    ]
    answers = [row["answer"] for name in names for row in rows if row["photo"] == name]
    groups = [name for name in names for row in rows if row["photo"] == name]
    clips = [
        Clip(name, [0.0], [Image.open(find(name, folders)).convert("RGB")], None) for name in names
    ]
    for method, memory, blind in (
        ("likelihood", True, False),
        ("likelihood", False, False),
        ("similarity", True, False),
        ("similarity", False, False),
        ("likelihood", False, True),
    ):
        features = [topa.encode(clip, use_memory=memory) for clip in clips]
        scores = topa.score(choices, features, method=method, blind=blind)  # type: ignore[arg-type]
        flat = [question for clip in scores for question in clip]
        right = [int(s.argmax()) == a for s, a in zip(flat, answers, strict=True)]
        figures = accuracy_report(right, groups, [len(s) for s in flat], [None] * len(flat))
        name = f"{method}{', blind' if blind else ', memory' if memory else ', no memory'}"
        print(f"{name:28} {figures['accuracy']:.3f} ± {figures['stderr']:.3f}  N {figures['n']}")


if __name__ == "__main__":
    main()
