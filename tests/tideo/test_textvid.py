"""TextVid-mini: whole, without repeats, and what is for evaluation stays out of training."""

from __future__ import annotations

from collections import Counter

import pytest

from topa.errors import DataError
from topa.tideo.textvid import load_textvid, load_tideos

SPLITS = ("train", "everyday", "heldout")


@pytest.mark.parametrize("split", SPLITS)
def test_every_tideo_is_valid_and_has_an_id_of_its_own(split):
    tideos = load_textvid(split)  # validated while read
    assert len(tideos) >= 20
    assert len({tideo.id for tideo in tideos}) == len(tideos)


def test_no_held_out_tideo_is_trained_on():
    trained = [*load_textvid("train"), *load_textvid("everyday")]
    held_out = load_textvid("heldout")
    for part in ("id", "caption"):
        seen = {getattr(tideo, part).casefold() for tideo in trained}
        assert not [t.id for t in held_out if getattr(t, part).casefold() in seen], part
    frames = {frame.caption.casefold() for tideo in trained for frame in tideo.frames}
    copied = [f.caption for t in held_out for f in t.frames if f.caption.casefold() in frames]
    assert not copied


def test_held_out_tideos_grew_from_seeds_of_their_own():
    seeds = {t.seed.casefold() for split in SPLITS[:2] for t in load_textvid(split)}
    shared = {t.id for t in load_textvid("heldout") if t.seed.casefold() in seeds}
    # "ice fishing on a frozen lake" was told twice; the two stories share no frame.
    assert shared <= {"ego2-027"}


def test_all_four_sources_are_there():
    assert {tideo.source for tideo in load_textvid("train")} == {
        "howto",
        "ego4d",
        "webvid",
        "wordnet",
    }


@pytest.mark.parametrize("split", SPLITS)
def test_the_place_of_the_right_option_says_nothing(split):
    places = Counter(qa.answer for tideo in load_textvid(split) for qa in tideo.qas)
    total = sum(places.values())
    assert all(share / total < 0.4 for share in places.values())


def test_sets_are_known_by_name_and_files_by_path(tideos_path, tideos):
    assert load_tideos("textvid") == list(load_textvid("train"))
    assert load_tideos("everyday") == list(load_textvid("everyday"))
    assert load_tideos("heldout") == list(load_textvid("heldout"))
    assert load_tideos(str(tideos_path)) == tideos


def test_an_unknown_name_is_taken_for_a_file(tmp_path):
    with pytest.raises(DataError, match="file not found"):
        load_tideos(str(tmp_path / "texvid"))
