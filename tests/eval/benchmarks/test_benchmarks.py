"""Every benchmark out of a few records in its original format, written by hand."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from topa.errors import ConfigError, DataError
from topa.eval.benchmarks import BENCHMARKS, VideoCaption, find_benchmark, name_count, read_own
from topa.eval.benchmarks.check import check_folder
from topa.eval.benchmarks.mvbench import TASKS
from topa.eval.benchmarks.tvqa import read_subtitles, subtitles_between

SHARED = Path(__file__).parents[3].parent / "shared"


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def read(name: str, folder: Path, split: str | None = None, subtitles: bool = False) -> list[Any]:
    benchmark = find_benchmark(name)
    return list(benchmark.read(folder, split or benchmark.default_split, subtitles))


# EgoSchema ----------------------------------------------------------------------------

EGOSCHEMA = [
    {
        "q_uid": uid,
        "google_drive_id": "1x",
        "question": "What is the overall goal of c in the video?",
        **{f"option {i}": f"C does {i}." for i in range(5)},
    }
    for uid in ("0074f737-11cb", "00b9a0de-c59e", "00f93e1e-cf4e")
]


def test_egoschema_subset_is_what_has_an_answer(tmp_path):
    write_json(tmp_path / "questions.json", EGOSCHEMA)
    write_json(tmp_path / "subset_answers.json", {"00f93e1e-cf4e": 4, "0074f737-11cb": 3})
    items = read("egoschema", tmp_path)
    assert [(item.qid, item.answer) for item in items] == [
        ("0074f737-11cb", 3),
        ("00f93e1e-cf4e", 4),
    ]
    assert items[0].options == [f"C does {i}." for i in range(5)]
    assert items[0].video == items[0].qid


def test_egoschema_full_keeps_questions_without_an_answer(tmp_path):
    write_json(tmp_path / "egoschema" / "questions.json", EGOSCHEMA)
    assert [item.answer for item in read("egoschema", tmp_path, "full")] == [None] * 3
    write_json(tmp_path / "egoschema" / "subset_answers.json", {"00b9a0de-c59e": 1})
    assert [item.answer for item in read("egoschema", tmp_path, "full")] == [None, 1, None]


def test_egoschema_in_the_table_of_the_authors_of_topa(tmp_path):
    (tmp_path / "subset.csv").write_text(
        "uid,question,a0,a1,a2,a3,a4,answer\n"
        'u1,"What, in short, does C do?",cooks,cleans,"sews, knits",reads,runs,2\n',
        encoding="utf-8",
    )
    (item,) = read("egoschema", tmp_path)
    assert (item.qid, item.answer, item.options[2]) == ("u1", 2, "sews, knits")


def test_an_answer_without_its_question_is_an_error(tmp_path):
    write_json(tmp_path / "questions.json", EGOSCHEMA[:1])
    write_json(tmp_path / "subset_answers.json", {"0074f737-11cb": 0, "zz": 1})
    with pytest.raises(DataError, match="1 answers have no question, the first zz"):
        read("egoschema", tmp_path)


# NExT-QA ------------------------------------------------------------------------------

NEXTQA = (
    "video,frame_count,width,height,question,answer,qid,type,a0,a1,a2,a3,a4\n"
    "4010069381,369,640,480,how do the two man play the instrument,0,6,CH,"
    "roll the handle,tap their feet,strum the string,hit with sticks,pat with hand\n"
    '4010069381,369,640,480,"what happens, then",2,7,TN,a,b,c,d,e\n'
)


def test_nextqa(tmp_path):
    (tmp_path / "test.csv").write_text(NEXTQA, encoding="utf-8")
    first, second = read("nextqa", tmp_path, "test")
    assert (first.qid, first.video, first.kind, first.answer) == (
        *("4010069381-6", "4010069381", "causal/CH"),
        0,
    )
    assert first.options[0] == "roll the handle"
    assert (second.question, second.kind, second.answer) == ("what happens, then", "temporal/TN", 2)


def test_the_real_nextqa_validation_file_has_its_published_counts():
    path = SHARED / "nextqa" / "val.csv"
    if not path.is_file():
        pytest.skip("the NExT-QA file is not part of the project")
    items = read("nextqa", path.parent)
    split = BENCHMARKS["nextqa"].split("val")
    assert len(items) == 4996
    assert name_count(split, items) is None
    # Xiao et al., table 2: causal 48%, temporal 29%, descriptive 23% over all splits; here by
    # counting the file with the csv module alone.
    with open(path, newline="", encoding="utf-8") as file:
        kinds = Counter(row["type"][0] for row in csv.DictReader(file))
    assert kinds == {"C": 2607, "T": 1612, "D": 777}
    assert Counter(item.kind.split("/")[0] for item in items) == {
        "causal": 2607,
        "temporal": 1612,
        "descriptive": 777,
    }
    assert len({item.video for item in items}) == 570


# STAR ---------------------------------------------------------------------------------

STAR = {
    "question_id": "Interaction_T1_13",
    "question": "Which object was tidied up by the person?",
    "answer": "The clothes.",
    "question_program": [{"function": "Query_Objs"}],
    "choices": [
        {"choice_id": 1, "choice": "The table.", "choice_program": []},
        {"choice_id": 0, "choice": "The blanket.", "choice_program": []},
        {"choice_id": 3, "choice": "The clothes.", "choice_program": []},
        {"choice_id": 2, "choice": "The towel.", "choice_program": []},
    ],
    "video_id": "6H78U",
    "start": 11.1,
    "end": 19.6,
    "situations": {"000333": {"rel_pairs": [["o1", "o2"]]}},
}


def test_star_orders_choices_by_id_and_keeps_bounds(tmp_path):
    write_json(tmp_path / "STAR_val.json", [STAR])
    (item,) = read("star", tmp_path)
    assert item.options == ["The blanket.", "The table.", "The towel.", "The clothes."]
    assert (item.answer, item.kind, item.video) == (3, "Interaction", "6H78U")
    assert (item.start, item.end) == (11.1, 19.6)


def test_star_refuses_an_answer_that_is_no_choice(tmp_path):
    write_json(tmp_path / "STAR_val.json", [{**STAR, "answer": "The broom."}])
    with pytest.raises(DataError, match=r"record 1: the answer 'The broom.' is not one"):
        read("star", tmp_path)


def test_star_test_split_has_no_answers(tmp_path):
    write_json(tmp_path / "STAR_test.json", [{k: v for k, v in STAR.items() if k != "answer"}])
    (item,) = read("star", tmp_path, "test")
    assert item.answer is None


# TVQA ---------------------------------------------------------------------------------

TVQA = {
    "qid": 122039,
    "q": "What is Janice holding on to after Chandler sends Joey to his room?",
    "a0": "Chandler's tie",
    "a1": "Chandler's hands",
    "a2": "Her Breakfast",
    "a3": "Her coat",
    "a4": 4,
    "answer_idx": 1,
    "ts": "1.5-4.2",
    "show_name": "Friends",
    "vid_name": "friends_s04e16_seg02_clip_19",
}
SRT = (
    "1\n00:00:00,000 --> 00:00:01,000\n(Chandler:)Go to your room!\n\n"
    "2\n00:00:02,000 --> 00:00:03,000\n(Janice:)<i>Okay.</i>\nI have to go.\n\n"
    "3\n00:00:06,000 --> 00:00:07,000\n(Joey:)Bye.\n"
)


def write_tvqa(folder: Path, **change: Any) -> None:
    row = json.dumps({**TVQA, **change})
    (folder / "tvqa_val.jsonl").write_text(row + "\n", encoding="utf-8")
    (folder / "tvqa_subtitles").mkdir(exist_ok=True)
    path = folder / "tvqa_subtitles" / f"{TVQA['vid_name']}.srt"
    path.write_text(SRT, encoding="utf-8")


def test_tvqa_with_and_without_subtitles(tmp_path):
    write_tvqa(tmp_path)
    (plain,) = read("tvqa", tmp_path)
    (spoken,) = read("tvqa", tmp_path, subtitles=True)
    assert (plain.qid, plain.answer, plain.start, plain.end) == ("122039", 1, 1.5, 4.2)
    assert plain.options[4] == "4"
    assert plain.subtitles is None
    assert spoken.subtitles == "(Janice:)Okay. I have to go."


@pytest.mark.parametrize(
    ("start", "end", "text"),
    [
        (0.0, 0.5, "(Chandler:)Go to your room!"),
        (3.5, 5.5, None),
        (None, None, "(Chandler:)Go to your room! (Janice:)Okay. I have to go. (Joey:)Bye."),
    ],
)
def test_subtitles_are_those_on_screen_between_the_bounds(tmp_path, start, end, text):
    path = tmp_path / "a.srt"
    path.write_text(SRT, encoding="utf-8")
    assert subtitles_between(read_subtitles(path), start, end) == text


def test_tvqa_subtitles_of_all_clips_in_one_file(tmp_path):
    write_tvqa(tmp_path)
    (from_srt,) = read("tvqa", tmp_path, subtitles=True)
    spoken = [
        {"text": "(Chandler:)Go to your room!", "start": 0.0, "end": 1.0},
        {"text": "(Janice:)Okay.\nI have to go.", "start": 2.0, "end": 3.0},
        {"text": "(Joey:)Bye.", "start": 6.0, "end": 7.0},
    ]
    path = tmp_path / "tvqa_preprocessed_subtitles.jsonl"
    path.write_text(json.dumps({"vid_name": TVQA["vid_name"], "sub": spoken}), encoding="utf-8")
    assert read("tvqa", tmp_path, subtitles=True) == [from_srt]
    path.write_text(json.dumps({"vid_name": "other", "sub": []}), encoding="utf-8")
    with pytest.raises(DataError, match="no subtitles of this clip"):
        read("tvqa", tmp_path, subtitles=True)


def test_tvqa_without_times_is_the_whole_clip(tmp_path):
    write_tvqa(tmp_path, ts="nan-nan")
    (item,) = read("tvqa", tmp_path)
    assert (item.start, item.end) == (None, None)
    write_tvqa(tmp_path, ts="soon")
    with pytest.raises(DataError, match="line 1: ts: 'start-end' in seconds"):
        read("tvqa", tmp_path)


# MVBench ------------------------------------------------------------------------------


def write_mvbench(folder: Path) -> None:
    for task in TASKS:
        record: dict[str, Any] = {
            "video": f"{task}.mp4",
            "question": "What happened?",
            "candidates": ["Sat down.", "Stood up.", "Sat down."],
            "answer": "Stood up.",
        }
        if TASKS[task].bounded:
            record |= {"start": 1.0, "end": 3.5}
        write_json(folder / "json" / f"{task}.json", [record, record])


def test_mvbench_has_20_tasks_with_bounds_where_they_belong(tmp_path):
    write_mvbench(tmp_path)
    items = read("mvbench", tmp_path)
    assert len(items) == 40
    assert len({item.kind for item in items}) == 20
    by_id = {item.qid: item for item in items}
    assert by_id["action_sequence-0"].video == "star/Charades_v1_480/action_sequence.mp4"
    assert (by_id["episodic_reasoning-1"].start, by_id["episodic_reasoning-1"].end) == (1.0, 3.5)
    assert by_id["moving_count-0"].start is None
    assert {item.answer for item in items} == {1}
    assert [item.qid for item in read("mvbench", tmp_path, "moving_count")] == [
        "moving_count-0",
        "moving_count-1",
    ]


def test_mvbench_names_the_tasks_that_are_missing(tmp_path):
    write_mvbench(tmp_path)
    (tmp_path / "json" / "state_change.json").unlink()
    with pytest.raises(DataError, match=r"1 of 20 task files not found: json/state_change\.json"):
        read("mvbench", tmp_path)


# Captions -----------------------------------------------------------------------------


def test_msrvtt_takes_the_videos_of_the_split_with_all_their_sentences(tmp_path):
    write_json(
        tmp_path / "test_videodatainfo.json",
        {
            "info": {"year": "2016"},
            "videos": [
                {"video_id": "video7010", "split": "test", "url": "u", "id": 7010},
                {"video_id": "video1", "split": "train", "url": "u", "id": 1},
            ],
            "sentences": [
                {"caption": "a girl talks", "video_id": "video7010", "sen_id": 0},
                {"caption": "a train", "video_id": "video1", "sen_id": 1},
                {"caption": "a girl is talking", "video_id": "video7010", "sen_id": 2},
            ],
        },
    )
    (item,) = read("msrvtt", tmp_path)
    assert item == VideoCaption(video="video7010", captions=["a girl talks", "a girl is talking"])


def test_vatex(tmp_path):
    record = {"videoID": "Ptf_2VRj-V0_000122_000132", "enCap": ["A", "B"], "chCap": ["C"]}
    write_json(tmp_path / "vatex_validation_v1.0.json", [record])
    (item,) = read("vatex", tmp_path, "val")
    assert (item.video, item.captions) == ("Ptf_2VRj-V0_000122_000132", ["A", "B"])


# Held out, and one's own --------------------------------------------------------------


def test_heldout_needs_no_files(tmp_path):
    items = read("heldout", tmp_path)
    assert name_count(BENCHMARKS["heldout"].split(None), items) is None


def test_own_questions_from_a_table(tmp_path):
    path = tmp_path / "q.csv"
    path.write_text(
        "qid,video,question,answer,a0,a1,a2,type,start,end\n"
        "1,x.mp4,What?,1,yes,no,,why,2.5,9\n"
        "2,x.mp4,Who?,,me,you,them,,,\n",
        encoding="utf-8",
    )
    first, second = read_own(path)
    assert (first.options, first.answer, first.kind, first.start) == (["yes", "no"], 1, "why", 2.5)
    assert (second.options, second.answer, second.kind) == (["me", "you", "them"], None, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("qid,video,question\n1,x,What?\n", "columns missing: answer"),
        ("qid,video,question,answer,a0,a1\n1,x,What?,7,a,b\n", "line 2: .*answer 7 is not one"),
        ("qid,video,question,answer,a0,a1\n1,x,What?,one,a,b\n", "line 2: answer: a whole number"),
        ("qid,video,question,answer,a0,a1\n1,x,What?,inf,a,b\n", "line 2: answer: a whole number"),
        (f"qid,video,question,answer,a0,a1\n1,x,{'y' * (1 << 18)},0,a,b\n", "field larger"),
        ("qid,video,question,answer,a0,a1,a2\n1,x,W?,0,a,,c\n", "line 2: an option is empty"),
        ("qid,video,question,answer,a0,a1\n1,x,W?,0,a,b\n1,x,W?,0,a,b\n", "'1' occurs twice"),
        ("qid,video,question,answer,a0,a1\n", "no questions"),
    ],
)
def test_a_wrong_table_says_where(tmp_path, text, message):
    path = tmp_path / "q.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_own(path)


# All of them --------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name != "heldout"])
def test_a_missing_file_says_where_to_get_it(tmp_path, name):
    with pytest.raises(DataError, match=r"Get (it|them) from "):
        read(name, tmp_path)


@pytest.mark.parametrize("benchmark", BENCHMARKS.values(), ids=lambda found: found.name)
def test_every_benchmark_says_what_a_user_has_to_know(benchmark):
    for text in (benchmark.title, benchmark.source, benchmark.licence, benchmark.paper):
        assert text
    for split in benchmark.splits.values():
        assert split.count
        assert not split.kinds or sum(split.kinds.values()) == split.count


def test_unknown_names_are_told(tmp_path):
    with pytest.raises(ConfigError, match="no benchmark is called 'nexqa'"):
        find_benchmark("nexqa")
    with pytest.raises(ConfigError, match="no split 'dev'"):
        BENCHMARKS["nextqa"].split("dev")


def test_check_tells_ready_differing_broken_and_missing(tmp_path, video):
    (tmp_path / "val.csv").write_text(NEXTQA, encoding="utf-8")
    write_json(tmp_path / "STAR_val.json", [{**STAR, "video_id": "clip"}])
    write_json(tmp_path / "STAR_test.json", {"not": "a list"})
    rows = {(row["benchmark"], row["split"]): row for row in check_folder(tmp_path)}
    assert rows["heldout", "heldout"]["state"] == "ready"
    assert rows["nextqa", "val"]["state"] == "differs"
    assert "2 items read, the published file has 4,996" in rows["nextqa", "val"]["message"]
    assert rows["star", "test"]["state"] == "broken"
    assert rows["tvqa", "val"]["state"] == "missing"
    assert "get it from https://github.com/jayleicn/TVQA" in rows["tvqa", "val"]["message"]
    (row, *_) = check_folder(tmp_path, ["star"], video.parent)
    assert "1 of 1 videos found" in row["message"]


def test_counts_that_differ_are_named_by_kind(tmp_path):
    (tmp_path / "val.csv").write_text(NEXTQA, encoding="utf-8")
    text = name_count(BENCHMARKS["nextqa"].split("val"), read("nextqa", tmp_path))
    assert text is not None
    assert "2 items read" in text
    assert "causal/CH: 1 rather than 683" in text
