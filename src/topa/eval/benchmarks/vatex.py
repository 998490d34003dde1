"""VATEX captioning, English: ten-second clips of Kinetics-600 with 10 captions each."""

from __future__ import annotations

from pathlib import Path

from topa.eval.benchmarks.catalogue import Benchmark, Split, VideoCaption
from topa.eval.benchmarks.files import build, need_file, read_records, take

SOURCE = "https://eric-xw.github.io/vatex-website (download page)"
_FILES = {
    "public_test": "vatex_public_test_english_v1.1.json",
    "val": "vatex_validation_v1.0.json",
    "train": "vatex_training_v1.0.json",
}


def read(root: Path, split: str, subtitles: bool = False) -> list[VideoCaption]:
    """Read videoID and enCap; a videoID is `<YouTube id>_<start>_<end>`, the name of its file.

    Raises:
        DataError: The file is missing or a record of it is wrong.
    """
    path = need_file(root, _FILES[split], "vatex", SOURCE)
    return [
        build(
            VideoCaption,
            where,
            {"video": take(record, "videoID", where), "captions": take(record, "enCap", where)},
        )
        for where, record in read_records(path)
    ]


BENCHMARK = Benchmark(
    name="vatex",
    title="VATEX (English captioning)",
    task="caption",
    splits={
        "public_test": Split((_FILES["public_test"],), 6000),
        "val": Split((_FILES["val"],), 3000),
        "train": Split((_FILES["train"],), 25991),
    },
    read=read,
    source=SOURCE,
    licence="see the download page; videos: YouTube, of which many are gone",
    paper="Wang et al., ICCV 2019 (arXiv 1904.03493)",
    metric="CIDEr, BLEU-1..4, ROUGE-L, METEOR where Java is",
)
