"""Packing, reading back, batch files, and the authors' data: nothing changes on the way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from endpoint import make_draft

from topa.errors import ConfigError, DataError
from topa.tideo.composition import Recipe
from topa.tideo.journal import read_state
from topa.tideo.official import iterate_list, read_official, to_official, write_official
from topa.tideo.offline import export_requests, import_results
from topa.tideo.pace import Pace
from topa.tideo.pack import pack_dataset
from topa.tideo.prompts import PromptStyle
from topa.tideo.results import read_failures, read_results
from topa.tideo.textvid import load_textvid, load_tideos

RECIPE = Recipe("model", PromptStyle(examples=0))


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_packed_dataset_is_read_back_as_it_was(tmp_path, tideos, form):
    if form == "parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path / "set"
    pack_dataset(tideos, out, form=form, shard=5, about={"model": "m"}, licence="cc0-1.0")
    names = [path.name for path in sorted((out / "data").iterdir())]
    assert names == [f"train-0000{i}-of-00003.{form}" for i in range(3)]
    assert load_tideos(str(out)) == tideos
    _, head, body = (out / "README.md").read_text().split("---\n", 2)
    card = yaml.safe_load(head)
    assert card["license"] == "cc0-1.0"
    assert card["configs"][0]["data_files"][0]["path"] == f"data/train-*.{form}"
    assert "- model: m" in body
    assert json.loads((out / "summary.json").read_text())["tideos"] == 12


def test_a_folder_that_holds_something_is_not_overwritten(tmp_path, tideos):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(ConfigError, match="not empty"):
        pack_dataset(tideos, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_packing_that_fails_leaves_nothing(tmp_path, tideos):
    def broken():
        yield tideos[0]
        raise DataError("a bad line")

    with pytest.raises(DataError):
        pack_dataset(broken(), tmp_path / "set", form="jsonl")
    with pytest.raises(DataError, match="no Tideos"):
        pack_dataset([], tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


# Batch files ---------------------------------------------------------------------------


def result(name: str, text: str, status: int = 200) -> dict:
    body = {
        "choices": [{"message": {"content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 50},
    }
    return {"custom_id": name, "response": {"status_code": status, "body": body}, "error": None}


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_batch_files_go_out_and_come_back(tmp_path, make_seeds):
    seeds, run, file = make_seeds(4), tmp_path / "run", tmp_path / "requests.jsonl"
    prices = Pace(price_in=1.0, price_out=2.0)
    assert export_requests(seeds, RECIPE, run, file, extra={"top_p": 0.9}) == 4
    requests = [json.loads(line) for line in file.read_text().splitlines()]
    assert {(r["method"], r["url"]) for r in requests} == {("POST", "/v1/chat/completions")}
    assert requests[0]["body"]["model"] == "model"
    assert requests[0]["body"]["top_p"] == 0.9
    assert requests[0]["body"]["response_format"]["json_schema"]["strict"] is True
    names = [request["custom_id"] for request in requests]
    good = json.dumps(make_draft("x"))
    rows = [
        result(names[0], good),
        result(names[1], "no JSON at all"),
        result(names[2], good, status=500),
        result("somebody-else-0", good),
    ]
    results = write_lines(tmp_path / "results.jsonl", rows)
    report = import_results(seeds, RECIPE, run, results, prices)
    assert (report.done, report.waiting, report.failed) == (1, 1, 0)
    assert list(report.errors) == [names[2]]
    assert report.unknown == ["somebody-else-0"]
    again = import_results(seeds, RECIPE, run, results, prices)
    assert (again.done, again.waiting, again.repeated) == (0, 0, 2)
    ledger = read_state(run).ledger
    assert (ledger.requests, ledger.answered, ledger.prompt_tokens) == (2, 2, 200)
    assert ledger.cost == pytest.approx(2 * (100 + 2 * 50) / 1e6)

    # The second round asks for a correction of what was wrong, and for what is missing.
    assert export_requests(seeds, RECIPE, run, file) == 3
    requests = [json.loads(line) for line in file.read_text().splitlines()]
    second = {request["custom_id"]: request["body"]["messages"] for request in requests}
    corrected = names[1].removesuffix("-0") + "-1"
    assert set(second) == {corrected, names[2], names[3]}
    assert second[corrected][-2] == {"role": "assistant", "content": "no JSON at all"}
    rows = [result(corrected, "still none"), result(names[2], good), result(names[3], good)]
    report = import_results(seeds, RECIPE, run, write_lines(results, rows), prices)
    assert (report.done, report.failed) == (2, 1)
    assert export_requests(seeds, RECIPE, run, file) == 0
    assert len(list(read_results(run))) == 3
    (failure,) = read_failures(run)
    assert failure["replies"] == ["no JSON at all", "still none"]


@pytest.mark.parametrize("line", [{"x": 1}, {"response": [1]}])
def test_a_line_that_is_no_result_is_refused(tmp_path, make_seeds, line):
    seeds = make_seeds(1)
    if "response" in line:
        line["custom_id"] = f"{RECIPE.key_of(seeds[0])}-0"
    path = write_lines(tmp_path / "r.jsonl", [line])
    with pytest.raises(DataError, match="line 1"):
        import_results(seeds, RECIPE, tmp_path / "run", path)


# The authors' data ---------------------------------------------------------------------


def test_their_format_and_back_is_the_same(tmp_path, tideos):
    path = tmp_path / "textvid.json"
    assert write_official(path, tideos) == 12
    assert json.loads(path.read_text()) == [to_official(tideo) for tideo in tideos]
    found = read_official(path)
    assert found.problems == []
    assert found.texts[tideos[0].id] == [len(frame.texts) for frame in tideos[0].frames]
    for old, new in zip(tideos, found.tideos, strict=True):
        assert (new.source, new.seed) == ("unknown", None)
        assert (new.id, new.frames, new.caption) == (old.id, old.frames, old.caption)
        for was, now in zip(old.qas, new.qas, strict=True):
            assert now.model_copy(update={"kind": was.kind}) == was
    write_official(tmp_path / "again.json", found.tideos)
    assert (tmp_path / "again.json").read_text() == path.read_text()


def record(**fields: object) -> dict:
    return {**to_official(load_textvid("train")[0]), **fields}


def test_records_that_do_not_fit_are_named_by_index(tmp_path):
    good = record(idx=7)
    frames, qas = good["frames"], good["QAs"]
    bad = [
        record(idx=1, frames=frames[:2]),
        record(idx=2, QAs=[{**qas[0], "answer": "F"}, *qas[1:]]),
        record(idx=3, QAs=[{**qas[0], "answer": "the cat"}, *qas[1:]]),
        record(idx=4, frames=[{"a": 5}, *frames[1:]]),
        {"idx": 5},
        "a text",
        record(idx=7),
        record(idx=8, frames=[{"only": "a caption"}, *frames[1:]]),
    ]
    path = tmp_path / "t.json"
    path.write_text(json.dumps([good, *bad]))
    found = read_official(path)
    assert [tideo.id for tideo in found.tideos] == ["7"]
    assert [index for index, _, _ in found.problems] == list(range(1, 9))
    assert [name for _, name, _ in found.problems] == ["1", "2", "3", "4", "5", "", "7", "8"]
    assert all(reason for *_, reason in found.problems)


def test_letters_in_options_are_taken_off(tmp_path):
    qas = record()["QAs"]
    marked = [f"({letter}) {text}" for letter, text in zip("ABCDE", qas[0]["options"], strict=True)]
    path = tmp_path / "t.json"
    path.write_text(json.dumps([record(QAs=[{**qas[0], "options": marked}, *qas[1:]])]))
    (tideo,) = read_official(path).tideos
    assert tideo.qas[0].options == qas[0]["options"]


@pytest.mark.parametrize("size", [1, 3, 7, 1 << 20])
def test_a_list_is_read_in_pieces_of_any_size(tmp_path, monkeypatch, size):
    monkeypatch.setattr("topa.tideo.official._CHUNK", size)
    values = [1234567, "a ] b", {"x": [1, {"y": "ü, "}]}, [], 0.5, None, -12]
    path = tmp_path / "l.json"
    path.write_text(json.dumps(values, indent=1, ensure_ascii=False), encoding="utf-8")
    assert list(iterate_list(path)) == values


@pytest.mark.parametrize(
    "text", [b"{}", b"", b'[{"idx": 1', b"[1, 2", b"[1 2 x]", b'["\xff"]', b"[" * 100_000]
)
def test_what_is_no_whole_list_is_refused(tmp_path, text):
    path = tmp_path / "l.json"
    path.write_bytes(text)
    with pytest.raises(DataError):
        list(iterate_list(path))
