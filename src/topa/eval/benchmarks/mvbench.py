"""MVBench: 20 tasks of temporal understanding, 200 questions each."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from topa.data.questions import VideoQuestion
from topa.errors import DataError
from topa.eval.benchmarks.catalogue import Benchmark, Split
from topa.eval.benchmarks.files import build, find_file, read_records, refuse_repeated, take

SOURCE = "https://huggingface.co/datasets/OpenGVLab/MVBench (json/ and video/)"


class Task(NamedTuple):
    """Where the videos of a task lie, and whether its questions are about a part of them."""

    folder: str
    bounded: bool = False


TASKS = {
    "action_sequence": Task("star/Charades_v1_480", True),
    "action_prediction": Task("star/Charades_v1_480", True),
    "action_antonym": Task("ssv2_video"),
    "fine_grained_action": Task("Moments_in_Time_Raw/videos"),
    "unexpected_action": Task("FunQA_test/test"),
    "object_existence": Task("clevrer/video_validation"),
    "object_interaction": Task("star/Charades_v1_480", True),
    "object_shuffle": Task("perception/videos"),
    "moving_direction": Task("clevrer/video_validation"),
    "action_localization": Task("sta/sta_video", True),
    "scene_transition": Task("scene_qa/video"),
    "action_count": Task("perception/videos"),
    "moving_count": Task("clevrer/video_validation"),
    "moving_attribute": Task("clevrer/video_validation"),
    "state_change": Task("perception/videos"),
    "fine_grained_pose": Task("nturgbd"),
    "character_order": Task("perception/videos"),
    "egocentric_navigation": Task("vlnqa"),
    "episodic_reasoning": Task("tvqa/frames_fps3_hq", True),
    "counterfactual_inference": Task("clevrer/video_validation"),
}


def read(root: Path, split: str, subtitles: bool = False) -> list[VideoQuestion]:
    """Read `json/<task>.json` of all 20 tasks, or of one (`split` is its name).

    Raises:
        DataError: A file is missing, a record of it is wrong, or an answer is no candidate.
    """
    wanted = list(TASKS) if split == "all" else [split]
    paths = {task: find_file(root, f"json/{task}.json|{task}.json", "mvbench") for task in wanted}
    missing = [task for task, path in paths.items() if path is None]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(wanted)} task files not found: "
            + ", ".join(f"json/{task}.json" for task in missing),
            where=root,
            mend=f"Get them from {SOURCE}.",
        )
    questions = []
    for task, path in paths.items():
        assert path is not None
        questions += [_question(task, where, record) for where, record in read_records(path)]
    return refuse_repeated(_number(questions), root)


def _question(task: str, where: str, record: dict[str, object]) -> VideoQuestion:
    options = take(record, "candidates", where, list)
    answer = take(record, "answer", where)
    if answer not in options:
        raise DataError(f"the answer {answer!r} is not one of the candidates", where=where)
    fields = {
        "qid": task,
        "video": f"{TASKS[task].folder}/{take(record, 'video', where)}",
        "question": take(record, "question", where),
        "options": options,
        "answer": options.index(answer),
        "kind": task,
    }
    if TASKS[task].bounded:
        fields |= {"start": take(record, "start", where), "end": take(record, "end", where)}
    return build(VideoQuestion, where, fields)


def _number(questions: list[VideoQuestion]) -> list[VideoQuestion]:
    """Return the questions with qids `<task>-<number within the task>`; the files have none."""
    counts: dict[str, int] = {}
    numbered = []
    for question in questions:
        number = counts.get(question.qid, 0)
        counts[question.qid] = number + 1
        numbered.append(question.model_copy(update={"qid": f"{question.qid}-{number}"}))
    return numbered


BENCHMARK = Benchmark(
    name="mvbench",
    title="MVBench",
    task="choice",
    splits={
        "all": Split(
            tuple(f"json/{task}.json|{task}.json" for task in TASKS),
            4000,
            dict.fromkeys(TASKS, 200),
        ),
        **{task: Split((f"json/{task}.json|{task}.json",), 200) for task in TASKS},
    },
    read=read,
    source=SOURCE,
    licence="dataset MIT, behind an agreement; videos: their owners', academic research only",
    paper="Li et al., CVPR 2024 (arXiv 2311.17005)",
    metric="accuracy, and the mean over the 20 tasks",
    notes="Whole videos, from which the parts are cut here, not the segments of other harnesses;"
    " episodic_reasoning comes as folders of frames at 3 fps, fine_grained_pose from NTU RGB+D.",
)
