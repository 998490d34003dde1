"""Caption metrics: by hand, by recordings of the MS-COCO scripts, and beside the scripts."""

from __future__ import annotations

import importlib.util
import math
import random
import shutil
from collections.abc import Mapping, Sequence

import pytest

from topa.errors import DataError
from topa.eval import caption_metrics
from topa.eval.caption_metrics import (
    bleu,
    bleu_statistics,
    cider,
    rouge_l,
    score_captions,
)
from topa.tideo.textvid import load_textvid


def caption_set() -> tuple[dict[str, str], dict[str, Sequence[str]]]:
    """200 real captions against six references each, some of them of another video, one empty."""
    draw = random.Random(0)
    tideos = load_textvid("train")[:200]
    references = {t.id: [t.caption, *[f.caption for f in t.frames[:5]]] for t in tideos}
    captions = {
        t.id: (draw.choice(t.frames).caption if i % 3 else tideos[(i + 1) % 200].caption)
        for i, t in enumerate(tideos)
    }
    captions[tideos[5].id] = ""
    return captions, references


def test_bleu_by_hand():
    """Papineni et al.: the/the... is clipped to the count of the reference."""
    statistics = bleu_statistics(["the the the cat"], [["the cat is on the mat"]])
    precision = (2 + 1) / 4  # two of three "the" and one "cat"
    penalty = math.exp(1 - 6 / 4)
    assert bleu(statistics)[0] == pytest.approx(precision * penalty, rel=1e-6)
    # Of the bigrams (the the, the the, the cat) one is in the reference.
    assert bleu(statistics)[1] == pytest.approx(math.sqrt(precision * 1 / 3) * penalty, rel=1e-6)


def test_bleu_takes_the_closest_reference_length():
    statistics = bleu_statistics(["a b c"], [["a b c d e f", "a x"]])
    assert statistics[0][1] == 2


def test_rouge_by_hand():
    """The longest common subsequence of these is "police the gunman" without "killed"."""
    precision, recall = 3 / 4, 3 / 4
    beta = 1.2**2
    wanted = (1 + beta) * precision * recall / (recall + beta * precision)
    assert rouge_l("police ended the gunman", ["police killed the gunman"]) == pytest.approx(wanted)
    assert rouge_l("", ["a cat"]) == 0


def test_cider_by_hand():
    """A caption equal to its one reference scores 10, one without a common word 0."""
    captions = ["a red cup of coffee", "a dog runs by today"]
    references = [["a red cup of coffee"], ["cats sleep on warm sofas"]]
    assert cider(captions, references) == pytest.approx([10.0, 0.0])
    # With one document every n-gram is in all of them: no weight is left.
    assert cider(captions[:1], references[:1]) == [0.0]


def test_scores_name_their_tokenizer_and_n(monkeypatch):
    monkeypatch.setattr(
        caption_metrics, "score_meteor", lambda *_: {"score": None, "reason": "no Java"}
    )
    scores = score_captions({"a": "A cat.", "b": ""}, {"a": ["a cat"], "b": ["a dog"]})
    assert set(scores) == {"BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr", "METEOR"}
    assert all("ptb-python" in row["tokenizer"] and row["n"] == 2 for row in scores.values())
    assert scores["METEOR"]["reason"] == "no Java"
    assert scores["ROUGE-L"]["score"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("captions", "references", "message"),
    [
        ({}, {}, "one caption for each video"),
        ({"a": "x"}, {"b": ["x"]}, "one caption for each video"),
        ({"a": "x"}, {"a": []}, "no reference"),
    ],
)
def test_unpaired_captions_are_refused(captions, references, message):
    with pytest.raises(DataError, match=message):
        score_captions(captions, references)


def test_scores_are_those_recorded_from_the_scripts():
    """Recorded with pycocoevalcap 1.2: its Java tokenizer and its scorers, on `caption_set()`."""
    scores = score_captions(*caption_set(), meteor=False)
    assert {name: row["score"] for name, row in scores.items()} == pytest.approx(
        {
            "BLEU-1": 0.4946891099145129,
            "BLEU-2": 0.36422044645962054,
            "BLEU-3": 0.30530090570486185,
            "BLEU-4": 0.27449313050437396,
            "ROUGE-L": 0.6032388206147605,
            "CIDEr": 0.8931002940778542,
        },
        abs=1e-4,
    )
    assert all(row["stderr"] > 0 for row in scores.values())


@pytest.mark.slow
def test_scores_are_those_of_the_scripts_and_of_meteor_itself():
    if importlib.util.find_spec("pycocoevalcap") is None or shutil.which("java") is None:
        pytest.skip("needs Java and the package pycocoevalcap")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    captions, references = caption_set()
    scores = score_captions(captions, references)
    tokenizer = PTBTokenizer()

    def wrap(texts: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        return tokenizer.tokenize({k: [{"caption": c} for c in v] for k, v in texts.items()})

    wanted, found = wrap(references), wrap({k: [v] for k, v in captions.items()})
    theirs = dict(
        zip(
            ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4"),
            Bleu(4).compute_score(wanted, found, verbose=0)[0],
            strict=True,
        )
    )
    theirs["ROUGE-L"] = Rouge().compute_score(wanted, found)[0]
    theirs["CIDEr"] = Cider().compute_score(wanted, found)[0]
    theirs["METEOR"] = Meteor().compute_score(wanted, found)[0]
    assert {name: row["score"] for name, row in scores.items()} == pytest.approx(theirs, abs=1e-4)


def test_errors_are_those_of_a_mean_where_scores_are_all_or_nothing():
    """Captions as long as their references: BLEU-1 and ROUGE-L are the share of equal ones."""
    references = {str(i): ["red cups stand here"] for i in range(40)}
    captions = {
        str(i): "red cups stand here" if i % 2 else "dogs run over meadows" for i in range(40)
    }
    scores = score_captions(captions, references, meteor=False)
    assert scores["BLEU-1"]["score"] == pytest.approx(0.5)
    # sqrt(p (1 - p) / n); 1,000 resamples know it to about 2%.
    assert scores["BLEU-1"]["stderr"] == pytest.approx((0.25 / 40) ** 0.5, rel=0.1)
    assert scores["ROUGE-L"]["stderr"] == pytest.approx((0.25 / 39) ** 0.5)
