"""What check, filters, duplicates, statistics and audits find in Tideos made for it."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

import pytest

from topa.errors import ConfigError
from topa.tideo.audit import AuditTask, make_items, measure, read_choice
from topa.tideo.backends import Completion
from topa.tideo.drafts import DraftError
from topa.tideo.duplicates import find_duplicates
from topa.tideo.filters import FilterReport, drop_questions, drop_tideos, rebalance
from topa.tideo.quality import find_faults, summarise
from topa.tideo.schema import Tideo
from topa.tideo.statistics import measure_tideos


def change(tideo: Tideo, **fields: Any) -> Tideo:
    return Tideo.model_validate({**tideo.model_dump(), **fields})


def ask(question: str, options: list[str], answer: int = 0) -> dict[str, Any]:
    return {"question": question, "options": options, "answer": answer}


PLAIN = ask("What does she hold?", ["a cup", "a rod", "a mat", "a pan", "a fan"])


def with_question(tideo: Tideo, item: dict[str, Any]) -> Tideo:
    rest = [ask(f"What lies in box {i}?", PLAIN["options"]) for i in ("one", "two", "three")]
    return change(tideo, qas=[item, *rest])


def rules_of(tideo: Tideo) -> set[str]:
    return {finding.rule for finding in find_faults(tideo)}


@pytest.mark.parametrize(
    ("item", "rule"),
    [
        (ask("What colour is the red cup?", ["red", "blue", "green", "white", "black"]), "leak"),
        (ask("Where does the dog sit on the mat?", ["On the mat", "On a bed", "Up"]), "leak"),
        (ask("Which?", ["the cup", "A cup", "a rope"], 2), "same-options"),
        (ask("What lies in box two?", PLAIN["options"]), "repeated-question"),
        (ask("What is in the last frame?", PLAIN["options"]), "names-a-frame"),
    ],
)
def test_doubtful_questions_are_found(tideos, item, rule):
    assert rule in rules_of(with_question(tideos[0], item))


@pytest.mark.parametrize(
    "item",
    [
        PLAIN,
        # Every option is in the question, so the question tells nothing.
        ask("Is it red or blue?", ["red", "blue"]),
        ask("What hangs in the picture frame?", PLAIN["options"]),
        ask("Which?", ["a dog and a cat", "a cat on a dog", "a bird"]),
    ],
)
def test_good_questions_are_left_alone(tideos, item):
    plain = rules_of(with_question(tideos[0], PLAIN))
    assert rules_of(with_question(tideos[0], item)) == plain


@pytest.mark.parametrize(
    ("caption", "rule"),
    [
        ("Then he jumps over the fence.", "time-word"),
        ("A cat.", "frame-length"),
        ("word " * 61, "frame-length"),
    ],
)
def test_doubtful_frames_are_found(tideos, caption, rule):
    frames = [frame.model_dump() for frame in tideos[0].frames]
    frames[0]["caption"] = caption
    assert rule in rules_of(change(tideos[0], frames=frames))
    frames[1]["caption"] = caption
    assert "repeated-frame" in rules_of(change(tideos[0], frames=frames))


def test_next_to_is_a_place_not_a_time(tideos):
    frames = [frame.model_dump() for frame in tideos[0].frames]
    before = rules_of(tideos[0])
    frames[0]["caption"] = "A cat sits next to a bowl."
    assert rules_of(change(tideos[0], frames=frames)) == before


def test_a_summary_counts_places_and_lengths(tideos):
    long = ask("Which?", ["a very long right option", "b", "c", "d", "e"])
    short = ask("Who?", ["a", "bbb", "ccc", "ddd", "eee"], 0)
    tideo = change(tideos[0], qas=[long, short, ask("When?", ["aa", "bb", "cc"], 2)])
    summary, _ = summarise([tideo])
    found = summary.to_dict()
    assert found["answer_positions"] == {0: 2, 2: 1}
    assert (found["right_is_longest"], found["right_is_shortest"]) == (1 / 3, 1 / 3)
    assert found["chance"] == pytest.approx((1 / 5 + 1 / 5 + 1 / 3) / 3)


def test_near_duplicates_are_found_and_the_first_is_kept(tideos):
    copy = change(tideos[1], id="copy", caption=tideos[1].caption + " It is day.")
    found = find_duplicates([*tideos, copy])
    assert [(item.id, item.of) for item in found] == [("copy", tideos[1].id)]
    assert found[0].similarity > 0.8
    with pytest.raises(ConfigError):
        find_duplicates(tideos, threshold=0)


def test_filters_account_for_everything(tideos):
    bad = with_question(tideos[0], ask("Which red cup?", ["red cup", "a", "b"]))
    report = FilterReport()
    kept = drop_tideos([bad, *tideos[1:]], {tideos[2].id: "near-duplicate: x"}, report)
    kept = drop_questions(kept, report, guessed=[(tideos[1].id, 0)])
    assert report.read == 12
    assert report.kept == len(kept) == 12 - sum(report.tideos.values())
    assert report.tideos["near-duplicate"] == 1
    assert set(report.left_out) == {t.id for t in tideos} - {t.id for t in kept}
    by_id = {tideo.id: tideo for tideo in kept}
    assert len(by_id[bad.id].qas) == 3
    assert report.questions["leak"] == 1
    assert report.questions["answered blind"] == 1 or tideos[1].id in report.left_out


def test_a_tideo_with_too_few_good_questions_goes_whole(tideos):
    report = FilterReport()
    guessed = [(tideos[0].id, k) for k in range(len(tideos[0].qas))]
    kept = drop_questions(tideos[:2], report, rules=(), guessed=guessed)
    assert [tideo.id for tideo in kept] == [tideos[1].id]
    assert report.left_out == {tideos[0].id: "0 good questions"}
    assert not report.questions


def test_rebalancing_evens_out_places_and_lengths(tideos):
    long = ask("Which?", ["the long right one", "b", "c", "d", "e"])
    biased = [
        change(tideo, id=f"{tideo.id}-{k}", qas=[long, *[PLAIN] * 4])
        for tideo in tideos
        for k in range(20)
    ]
    before = summarise(biased)[0]
    report = FilterReport()
    even = rebalance(biased, report)
    after = summarise(even)[0]
    assert before.positions == {0: 1200}
    assert before.longest / before.questions == 0.2 == pytest.approx(before.to_dict()["chance"])
    # About 240 a place, standard deviation 14.
    assert all(180 < count < 300 for count in after.positions.values())
    for old, new in zip(biased, even, strict=True):
        for was, now in zip(old.qas, new.qas, strict=True):
            assert now.options[now.answer] == was.options[was.answer]
    assert report.moved > 900
    worse = [change(tideo, qas=[long, long, *[PLAIN] * 3]) for tideo in biased]
    evened = summarise(rebalance(worse, FilterReport()))[0]
    assert evened.longest <= evened.chance + 1e-9


def test_options_that_speak_of_others_stay(tideos):
    item = ask("Which?", ["a", "b", "c", "d", "all of these"], 4)
    even = rebalance([change(tideos[0], qas=[item] * 3)], FilterReport())
    assert all(question.answer == 4 for question in even[0].qas)


def test_vocabulary_is_compared_on_equal_samples(tideos):
    groups = Counter(tideo.source for tideo in tideos)
    found = measure_tideos(tideos)
    vocabulary = found["vocabulary"]
    assert vocabulary["tideos_per_source"] == min(groups.values())
    assert set(vocabulary["sources"]) == set(groups)
    assert sum(found["frames_per_tideo"].values()) == found["tideos"] == 12
    twice = measure_tideos([change(tideos[0], id=str(i)) for i in range(3)])
    (row,) = twice["vocabulary"]["sources"].values()
    assert row["words"] >= 3 * row["different_words"]
    assert row["once"] == 0


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ('{"answer": "B"}', 1),
        ('{"answer": "(c)"}', 2),
        ('I think\n{"answer": "D"}', 3),
        ("B", 1),
        ("(A)", 0),
        ("B\nC", None),
        ('{"answer": "F"}', None),
        ('{"answer": 1}', None),
        ("A cup is held.", None),
        ("", None),
    ],
)
def test_only_a_named_option_is_a_choice(text, choice):
    assert read_choice(text, 5) == choice


def answer_all(items: list, pick: Any) -> list[dict]:
    task, choices = AuditTask("m"), []
    for item in items:
        composition = task.compose(item, task.key_of(item))
        next(composition)
        with pytest.raises(StopIteration) as ended:
            composition.send(Completion(json.dumps({"answer": "ABCDE"[pick(item)]})))
        choices.append(ended.value.value[0])
    return choices


def test_an_audit_tells_blind_from_reading(tideos):
    items = make_items(tideos)
    questions = sum(len(tideo.qas) for tideo in tideos)
    assert len(items) == 2 * questions
    assert len({AuditTask("m").key_of(item) for item in items}) == 2 * questions
    blind = [item for item in items if item.view == "blind"]
    assert all(tideos[0].frames[0].caption not in item.prompt for item in blind)
    rng = random.Random(0)
    choices = answer_all(
        items, lambda item: item.right if item.view == "frames" else rng.randrange(5)
    )
    found = measure(choices)
    assert found["frames"]["all"]["accuracy"] == 1
    assert found["frames"]["all"]["error"] == 0
    assert found["blind"]["all"]["n"] == questions
    assert found["blind"]["all"]["chance"] == pytest.approx(0.2)
    assert 0 < found["blind"]["all"]["accuracy"] < 0.5


def test_the_error_is_clustered_by_tideo():
    rows = [
        {
            "view": "blind",
            "kind": "causal",
            "tideo": str(i // 4),
            "right": i % 8 < 4,
            "choice": 0,
            "chance": 0.2,
        }
        for i in range(400)
    ]
    found = measure(rows)["blind"]["all"]
    # 100 Tideos, each all right or all wrong: the error of 100 draws, not of 400.
    assert found["error"] == pytest.approx((0.25 / 99) ** 0.5)


def test_a_reply_without_an_option_is_asked_again_then_fails(tideos):
    task, item = AuditTask("m"), make_items(tideos)[0]
    composition = task.compose(item, "k")
    next(composition)
    composition.send(Completion("hm"))
    with pytest.raises(DraftError):
        composition.send(Completion("hm"))
