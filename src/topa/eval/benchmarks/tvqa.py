"""TVQA: questions on moments of television series, with or without their subtitles."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import av
from av.error import FFmpegError

from topa.data.questions import VideoQuestion
from topa.errors import DataError
from topa.eval.benchmarks.catalogue import Benchmark, Split
from topa.eval.benchmarks.files import (
    build,
    find_file,
    need_file,
    number_records,
    refuse_repeated,
    take,
    whole,
)
from topa.runs import read_jsonl

SOURCE = "https://github.com/jayleicn/TVQA (data/: questions and subtitles; frames on request)"
ALL_SUBTITLES = "tvqa_preprocessed_subtitles.jsonl"

Subtitles = Sequence[tuple[float, float, str]]
"""Start and end in seconds, and what is said."""

_TAG = re.compile(r"</?\w+[^>]*>")  # <i>, <font color=...>


def read(root: Path, split: str, subtitles: bool = False) -> list[VideoQuestion]:
    """Read `tvqa_<split>.jsonl`: q, a0 .. a4, answer_idx, vid_name and ts ("start-end").

    With subtitles, those on screen between start and end become part of the question. They come
    as one file of all clips (tvqa_preprocessed_subtitles.jsonl) or as tvqa_subtitles/<clip>.srt;
    a clip that they lack is an error, one where nobody speaks is not.

    Raises:
        DataError: A file is missing or a line of it is wrong.
    """
    path = need_file(root, f"tvqa_{split}.jsonl", "tvqa", SOURCE)
    find_subtitles = _open_subtitles(root) if subtitles else None
    questions = []
    for number, record in read_jsonl(path):
        where = f"{path}, line {number}"
        start, end = _interval(str(record.get("ts", "nan-nan")), where)
        video = take(record, "vid_name", where, str)
        answer = record.get("answer_idx")
        spoken = find_subtitles and subtitles_between(find_subtitles(video), start, end)
        fields = {
            "qid": str(take(record, "qid", where)),
            "video": video,
            "question": take(record, "q", where),
            "options": [str(take(record, f"a{i}", where)) for i in range(5)],
            "answer": None if answer is None else whole(answer, "answer_idx", where),
            "start": start,
            "end": end,
            "subtitles": spoken,
        }
        questions.append(build(VideoQuestion, where, fields))
    return refuse_repeated(questions, path)


def _interval(text: str, where: str) -> tuple[float | None, float | None]:
    """Return the bounds in seconds; none where the file says nan, which means the whole clip."""
    try:
        start, end = (float(part) for part in text.split("-"))
    except ValueError:
        problem = f"ts: 'start-end' in seconds is needed, got {text!r}"
        raise DataError(problem, where=where) from None
    return (None, None) if math.isnan(start) or math.isnan(end) else (start, end)


def _open_subtitles(root: Path) -> Callable[[str], Subtitles]:
    """Return what gives the subtitles of a clip."""
    path = find_file(root, ALL_SUBTITLES, "tvqa")
    if path is None:
        return lambda video: read_subtitles(
            need_file(root, f"tvqa_subtitles/{video}.srt", "tvqa", SOURCE)
        )
    clips = read_all_subtitles(path)

    def find(video: str) -> Subtitles:
        if video not in clips:
            raise DataError("no subtitles of this clip", where=f"{path}, {video}")
        return clips[video]

    return find


def read_all_subtitles(path: Path) -> dict[str, Subtitles]:
    """Return the subtitles of every clip: lines of {vid_name, sub: [{text, start, end}]}.

    Raises:
        DataError: A line is of another form.
    """
    clips: dict[str, Subtitles] = {}
    for number, record in read_jsonl(path):
        where = f"{path}, line {number}"
        clips[take(record, "vid_name", where, str)] = [
            (
                float(take(spoken, "start", place, int | float)),
                float(take(spoken, "end", place, int | float)),
                " ".join(take(spoken, "text", place, str).split()),
            )
            for place, spoken in number_records(take(record, "sub", where), where, "subtitle")
        ]
    return clips


@lru_cache(maxsize=64)
def read_subtitles(path: Path) -> Subtitles:
    """Return (start, end, text) of every subtitle of an .srt file, read by FFmpeg.

    Raises:
        DataError: It is not a subtitle file.
    """
    try:
        with av.open(str(path), format="srt") as container:
            return tuple(
                (
                    float(packet.pts * packet.time_base),
                    float((packet.pts + (packet.duration or 0)) * packet.time_base),
                    " ".join(_TAG.sub("", bytes(packet).decode("utf-8", "replace")).split()),
                )
                for packet in container.demux(subtitles=0)
                if packet.pts is not None and packet.time_base is not None
            )
    except (FFmpegError, IndexError) as error:
        raise DataError(f"not a subtitle file ({error})", where=path) from None


def subtitles_between(subtitles: Subtitles, start: float | None, end: float | None) -> str | None:
    """Return what is said from start to end (seconds), None where nobody speaks."""
    low, high = start or 0.0, math.inf if end is None else end
    spoken = [text for begin, stop, text in subtitles if begin <= high and stop >= low]
    return " ".join(filter(None, spoken)) or None


BENCHMARK = Benchmark(
    name="tvqa",
    title="TVQA",
    task="choice",
    splits={
        "val": Split(("tvqa_val.jsonl",), 15253),
        "test_public": Split(("tvqa_test_public.jsonl",), 7623, answered=False),
        "train": Split(("tvqa_train.jsonl",), 122039),
    },
    read=read,
    source=SOURCE,
    licence="repository MIT; frames: by an agreement to be signed, not to be passed on",
    paper="Lei et al., EMNLP 2018 (arXiv 1809.01696)",
    feature_rate=3.0,
    features=("clipvitl14.pth",),
    notes="--subtitles reads tvqa_preprocessed_subtitles.jsonl, or tvqa_subtitles/<vid_name>.srt;"
    " frames come as folders at 3 fps; the test answers are with a server.",
)
