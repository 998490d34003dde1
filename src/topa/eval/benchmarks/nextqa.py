"""NExT-QA, multiple choice: causal, temporal and descriptive questions on everyday videos."""

from __future__ import annotations

from pathlib import Path

from topa.data.questions import VideoQuestion
from topa.eval.benchmarks.catalogue import Benchmark, Split
from topa.eval.benchmarks.files import build, need_file, read_table, refuse_repeated, whole

SOURCE = "https://github.com/doc-doc/NExT-QA (dataset/nextqa; videos: its README)"
KINDS = {
    "CW": "causal/CW",
    "CH": "causal/CH",
    "TN": "temporal/TN",
    "TC": "temporal/TC",
    "TP": "temporal/TP",
    "DC": "descriptive/DC",
    "DL": "descriptive/DL",
    "DO": "descriptive/DO",
}
OPTIONS = [f"a{i}" for i in range(5)]


def read(root: Path, split: str, subtitles: bool = False) -> list[VideoQuestion]:
    """Read `<split>.csv`: video, question, answer, qid, type, a0 .. a4.

    Raises:
        DataError: The file is missing or a row of it is wrong.
    """
    path = need_file(root, f"{split}.csv", "nextqa", SOURCE)
    columns = ["video", "question", "answer", "qid", "type", *OPTIONS]
    questions = [
        build(
            VideoQuestion,
            where,
            {
                "qid": f"{row['video']}-{row['qid']}",
                "video": row["video"],
                "question": row["question"],
                "options": [row[name] for name in OPTIONS],
                "answer": whole(row["answer"], "answer", where),
                "kind": KINDS.get(row["type"], row["type"]),
            },
        )
        for where, row in read_table(path, columns)
    ]
    return refuse_repeated(questions, path)


BENCHMARK = Benchmark(
    name="nextqa",
    title="NExT-QA (multiple choice)",
    task="choice",
    splits={
        "val": Split(
            ("val.csv",),
            4996,
            {
                "causal/CW": 1924,
                "causal/CH": 683,
                "temporal/TN": 895,
                "temporal/TC": 663,
                "temporal/TP": 54,
                "descriptive/DC": 177,
                "descriptive/DL": 295,
                "descriptive/DO": 305,
            },
        ),
        "test": Split(
            ("test.csv",),
            8564,
            {
                "causal/CW": 3329,
                "causal/CH": 1173,
                "temporal/TN": 1399,
                "temporal/TC": 1165,
                "temporal/TP": 93,
                "descriptive/DC": 322,
                "descriptive/DL": 483,
                "descriptive/DO": 600,
            },
        ),
        "train": Split(("train.csv",), 34132),
    },
    read=read,
    source=SOURCE,
    licence="repository MIT; videos from VidOR, which took them from YFCC100M (terms by video)",
    paper="Xiao et al., CVPR 2021 (arXiv 2105.08276)",
    features=("clipvitl14.pth",),
    notes="Videos may lie in the folders of VidOR (NExTVideo/1164/3238737531.mp4) or flat.",
)
