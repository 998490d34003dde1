"""Seeds out of files, WordNet and topics: cleaned, different, mixed, always in one order."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from topa.errors import ConfigError, DataError
from topa.tideo.seeds import Seed, SeedSpec, gather_seeds, parse_spec


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def texts(*specs: SeedSpec, **options) -> list[str]:
    return [seed.text for seed in gather_seeds(specs, **options).seeds]


def test_a_spec_is_a_name_and_options():
    spec = parse_spec("a,b.csv,column=the title,weight=2.5")
    assert spec == SeedSpec("a,b.csv", column="the title", weight=2.5)
    assert parse_spec("topic:cats, dogs and column=5") == SeedSpec("topic:cats, dogs and column=5")
    assert parse_spec("wordnet,pos=v,min_count=3") == SeedSpec("wordnet", pos="v", min_count=3)


@pytest.mark.parametrize(
    "text", ["a.csv,weight=x", "a.csv,weight=0", "a.csv,source=tv", "wordnet,pos=q", "wordnet,pos="]
)
def test_a_wrong_spec_is_refused(text):
    with pytest.raises(ConfigError):
        parse_spec(text)


@pytest.mark.parametrize(
    ("column", "source"), [("title", "howto"), ("name", "webvid"), ("caption", "webvid")]
)
def test_the_columns_of_known_sets_are_found(tmp_path, column, source):
    table = write(tmp_path / "a.csv", f"videoid,{column}\n1,to cook rice\n2,\n3,To cook  RICE\n")
    found = gather_seeds([SeedSpec(str(table))])
    assert found.seeds == [Seed(source, "to cook rice")]
    count = found.counts[str(table)]
    assert (count.read, count.empty, count.duplicates, count.kept) == (3, 1, 1, 1)


def test_the_tags_of_ego4d_are_put_into_words(tmp_path):
    rows = ["#C C opens the drawer", "#O A man X walks", "#C C takes #unsure"]
    table = tmp_path / "n.jsonl"
    table.write_text("".join(json.dumps({"narration_text": row}) + "\n" for row in rows))
    found = sorted(texts(SeedSpec(str(table))))
    assert found == [
        "A man X walks",
        "The camera wearer opens the drawer",
        "The camera wearer takes something",
    ]


def test_every_kind_of_file_gives_the_same_seeds(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = ["a cat, asleep", 'a "dog"', "ein Möwe"]
    write(tmp_path / "s.txt", "\n".join(rows))
    write(
        tmp_path / "s.tsv",
        "id\tcaption\n" + "".join(f'1\t"{r.replace(chr(34), chr(34) * 2)}"\n' for r in rows),
    )
    write(tmp_path / "s.jsonl", "".join(json.dumps({"caption": row}) + "\n" for row in rows))
    parquet.write_table(pyarrow.table({"caption": rows}), tmp_path / "s.parquet")
    found = {
        suffix: texts(SeedSpec(str(tmp_path / f"s.{suffix}")))
        for suffix in ("txt", "tsv", "jsonl", "parquet")
    }
    assert sorted(found["txt"]) == sorted(rows)
    assert found["txt"] == found["tsv"] == found["jsonl"] == found["parquet"]


@pytest.mark.parametrize("header", ['"caption', "y" * (1 << 18)])
def test_a_broken_header_is_told(tmp_path, header):
    table = write(tmp_path / "a.csv", f"{header}\n1\n")
    with pytest.raises(DataError, match="not valid CSV"):
        gather_seeds([SeedSpec(str(table))])


def test_a_missing_column_names_those_that_are_there(tmp_path):
    table = write(tmp_path / "a.csv", "alpha,beta\n1,2\n")
    with pytest.raises(DataError, match="alpha, beta"):
        gather_seeds([SeedSpec(str(table))])
    with pytest.raises(DataError, match="gamma"):
        gather_seeds([SeedSpec(str(table), column="gamma")])
    assert texts(SeedSpec(str(table), column="beta")) == ["2"]


def test_sources_that_are_none_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="not a source"):
        gather_seeds([SeedSpec("cooking")])
    with pytest.raises(DataError, match="not found"):
        gather_seeds([SeedSpec(str(tmp_path / "no.txt"))])
    with pytest.raises(ConfigError, match="weight"):
        gather_seeds([SeedSpec("topic:a", weight=1), SeedSpec("topic:b")])


def test_a_longer_list_begins_with_the_shorter_one(tmp_path):
    a = write(tmp_path / "a.txt", "\n".join(f"a {i}" for i in range(300)))
    b = write(tmp_path / "b.txt", "\n".join(f"b {i}" for i in range(300)))
    specs = [SeedSpec(str(a), weight=3), SeedSpec(str(b), weight=1)]
    short, long = texts(*specs, limit=50), texts(*specs, limit=200)
    assert long[:50] == short
    assert len(set(long)) == 200
    # 3 to 1: 150 of 200 are from a, with a standard deviation of 6.
    assert 125 < Counter(text[0] for text in long)["a"] < 175
    assert texts(*specs, shuffle=1, limit=50) != short


def test_without_weights_everything_is_taken_once(tmp_path):
    a = write(tmp_path / "a.txt", "one\ntwo\n")
    b = write(tmp_path / "b.txt", "Two\nthree\n")
    assert sorted(texts(SeedSpec(str(a)), SeedSpec(str(b)))) == ["one", "three", "two"]


WORDNET = {
    # Lines in the format of wndb(5WN), their words made up here.
    "data.noun": "00000000 03 n 01 thing 0 000 | something that is\n"
    "00000049 05 n 02 cat 0 house_cat 0 000 | an animal that purrs\n",
    "data.verb": "00000000 29 v 01 purr 0 000 00 | to make the sound of a cat\n",
    "index.noun": "cat n 1 0 1 1 00000049\nhouse_cat n 1 0 1 1 00000049\n"
    "thing n 1 0 1 0 00000000\n",
    "index.verb": "purr v 1 0 1 0 00000000\n",
    "cntlist.rev": "cat%1:05:00:: 1 7\nhouse_cat%1:05:00:: 1 0\n",
}


@pytest.fixture
def wordnet(tmp_path) -> Path:
    pytest.importorskip("nltk")
    empty = (
        "data.adj",
        "data.adv",
        "index.adj",
        "index.adv",
        "noun.exc",
        "verb.exc",
        "adj.exc",
        "adv.exc",
    )
    for name, text in {**dict.fromkeys(empty, ""), **WORDNET}.items():
        write(tmp_path / name, text)
    return tmp_path


def test_wordnet_gives_words_with_glosses_filtered_by_use(wordnet):
    found = gather_seeds([parse_spec("wordnet")], wordnet=wordnet)
    assert found.seeds == [Seed("wordnet", "cat, house cat: an animal that purrs")]
    everything = texts(parse_spec("wordnet,min_count=0"), wordnet=wordnet)
    assert sorted(everything) == [
        "cat, house cat: an animal that purrs",
        "purr: to make the sound of a cat",
        "thing: something that is",
    ]
    assert texts(parse_spec("wordnet,pos=v,min_count=0"), wordnet=wordnet) == [
        "purr: to make the sound of a cat"
    ]


def test_an_incomplete_wordnet_is_refused(wordnet):
    (wordnet / "data.verb").unlink()
    with pytest.raises(DataError, match=r"data\.verb"):
        gather_seeds([parse_spec("wordnet")], wordnet=wordnet)
