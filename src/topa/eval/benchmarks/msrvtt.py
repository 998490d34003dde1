"""MSR-VTT captioning: 10,000 web clips with 20 captions each, official splits."""

from __future__ import annotations

from pathlib import Path

from topa.errors import DataError
from topa.eval.benchmarks.catalogue import Benchmark, Split, VideoCaption
from topa.eval.benchmarks.files import build, need_file, number_records, take
from topa.runs import read_json

SOURCE = "the MSR-VTT challenge files (train_val_videodatainfo.json, test_videodatainfo.json)"
_TEST = "test_videodatainfo.json|videodatainfo.json|MSRVTT_data.json"
_TRAIN = "train_val_videodatainfo.json|videodatainfo.json|MSRVTT_data.json"
# The name of each split within the files.
_LABELS = {"test": "test", "val": "validate", "train": "train"}


def read(root: Path, split: str, subtitles: bool = False) -> list[VideoCaption]:
    """Read the videos of a split with all their sentences, in the order of the file.

    Raises:
        DataError: A file is missing or of another form, or a video has no caption.
    """
    path = need_file(root, _TEST if split == "test" else _TRAIN, "msrvtt", SOURCE)
    value = read_json(path)
    if not isinstance(value, dict) or not {"videos", "sentences"} <= set(value):
        raise DataError("an object with videos and sentences is needed", where=path)
    captions: dict[str, list[str]] = {}
    for where, record in number_records(value["videos"], str(path), "video"):
        if take(record, "split", where) == _LABELS[split]:
            captions[take(record, "video_id", where, str)] = []
    for where, record in number_records(value["sentences"], str(path), "sentence"):
        video = take(record, "video_id", where, str)
        if video in captions:
            captions[video].append(take(record, "caption", where))
    if not captions:
        raise DataError(f"no videos of the split {_LABELS[split]!r}", where=path)
    return [
        build(VideoCaption, f"{path}, {video}", {"video": video, "captions": texts})
        for video, texts in captions.items()
    ]


BENCHMARK = Benchmark(
    name="msrvtt",
    title="MSR-VTT (captioning)",
    task="caption",
    splits={
        "test": Split((_TEST,), 2990),
        "val": Split((_TRAIN,), 497),
        "train": Split((_TRAIN,), 6513),
    },
    read=read,
    source=SOURCE,
    licence="none stated with the files; published for research by Microsoft, videos: YouTube",
    paper="Xu et al., CVPR 2016",
    metric="CIDEr, BLEU-1..4, ROUGE-L, METEOR where Java is",
)
