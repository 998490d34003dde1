"""STAR: situated reasoning about a part of a Charades video, four options."""

from __future__ import annotations

from pathlib import Path

from topa.data.questions import VideoQuestion
from topa.errors import DataError
from topa.eval.benchmarks.catalogue import Benchmark, Split
from topa.eval.benchmarks.files import (
    build,
    need_file,
    number_records,
    read_records,
    refuse_repeated,
    take,
)

SOURCE = "https://bobbywu.com/STAR (questions; videos: Charades scaled to 480p, prior.allenai.org)"
KINDS = ("Interaction", "Sequence", "Prediction", "Feasibility")


def read(root: Path, split: str, subtitles: bool = False) -> list[VideoQuestion]:
    """Read `STAR_<split>.json`; options in the order of their choice_id.

    Raises:
        DataError: The file is missing, a record of it is wrong, or an answer is no option.
    """
    path = need_file(root, f"STAR_{split}.json", "star", SOURCE)
    questions = []
    for where, record in read_records(path):
        choices = sorted(
            (take(choice, "choice_id", place, int | float), take(choice, "choice", place, str))
            for place, choice in number_records(take(record, "choices", where), where, "choice")
        )
        options = [text for _, text in choices]
        answer = record.get("answer")
        if answer is not None and answer not in options:
            raise DataError(f"the answer {answer!r} is not one of the choices", where=where)
        qid = str(take(record, "question_id", where))
        fields = {
            "qid": qid,
            "video": take(record, "video_id", where),
            "question": take(record, "question", where),
            "options": options,
            "answer": None if answer is None else options.index(answer),
            "kind": qid.split("_")[0],
            "start": take(record, "start", where),
            "end": take(record, "end", where),
        }
        questions.append(build(VideoQuestion, where, fields))
    return refuse_repeated(questions, path)


BENCHMARK = Benchmark(
    name="star",
    title="STAR",
    task="choice",
    splits={
        "val": Split(
            ("STAR_val.json",),
            7098,
            {"Interaction": 2398, "Sequence": 3586, "Prediction": 624, "Feasibility": 490},
        ),
        "test": Split(("STAR_test.json",), 7377, answered=False),
        "train": Split(("STAR_train.json",), 45731),
    },
    read=read,
    source=SOURCE,
    licence="repository Apache-2.0; videos: license.txt of Charades",
    paper="Wu et al., NeurIPS 2021 Datasets and Benchmarks (arXiv 2405.09711)",
    features=("clipvitl14.pth",),
    notes="Only the part between start and end is watched; the test answers are with a server.",
)
