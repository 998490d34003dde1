"""Tideos left in their files are those that are read whole, in any order, from any process."""

from __future__ import annotations

import multiprocessing
import pickle

import pytest

from topa.errors import DataError
from topa.tideo.pack import pack_dataset
from topa.tideo.schema import write_tideos
from topa.tideo.shelf import open_shelf
from topa.tideo.textvid import load_tideos


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TOPA_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", ["textvid", "everyday", "heldout"])
def test_bundled_ones_are_those_of_the_package(name):
    assert list(open_shelf(name)) == load_tideos(name)


def test_files_and_folders_are_read_where_they_lie(tideos, tmp_path):
    folder = tmp_path / "shards"
    write_tideos(folder / "a.jsonl", tideos[:5])
    text = (folder / "a.jsonl").read_text().replace("\n", "\n\n", 1)  # a blank line counts nothing
    (folder / "a.jsonl").write_text(text)
    write_tideos(folder / "b.jsonl", tideos[5:])
    shelf = open_shelf(str(folder))
    assert list(shelf) == tideos
    assert (shelf[0], shelf[-1]) == (tideos[0], tideos[-1])
    assert list(shelf[3:7]) == tideos[3:7]
    assert list(shelf.take([7, 0]) + shelf[5:6]) == [tideos[7], tideos[0], tideos[5]]
    with pytest.raises(IndexError):
        shelf[12]


def test_a_packed_dataset_is_copied_once(tideos, tmp_path):
    pack_dataset(tideos, tmp_path / "packed")
    assert list(open_shelf(str(tmp_path / "packed"))) == tideos
    [copy] = (tmp_path / "cache" / "tideos").iterdir()
    written = copy.stat().st_mtime_ns
    assert list(open_shelf(str(tmp_path / "packed"))) == tideos
    assert copy.stat().st_mtime_ns == written


def test_other_processes_read_them_too(tideos, tideos_path):
    shelf = open_shelf(str(tideos_path))
    assert shelf[2] == tideos[2]  # the file is open when the others start
    assert list(pickle.loads(pickle.dumps(shelf))) == tideos
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(shelf.__getitem__, range(12)) == tideos


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [lines[0], lines[0]], r"line 2: id '.*' is also in .*, line 1"),
        (lambda lines: [lines[0], "{}"], "line 2: id: Field required"),
        (lambda lines: [lines[0], lines[1][:50]], "line 2: record: Invalid JSON"),
        (lambda lines: [], "no Tideos"),
    ],
    ids=["twice", "no Tideo", "cut off", "empty"],
)
def test_what_is_wrong_is_named_with_its_line(change, message, tideos_path, tmp_path):
    path = tmp_path / "wrong.jsonl"
    path.write_text("\n".join(change(tideos_path.read_text().splitlines())))
    with pytest.raises(DataError, match=message):
        open_shelf(str(path))


def test_a_file_that_changes_while_it_is_read_is_refused(tideos, tideos_path, tmp_path):
    path = tmp_path / "changing.jsonl"
    path.write_bytes(tideos_path.read_bytes())
    shelf = open_shelf(str(path))
    with path.open("r+b") as file:
        file.write(b"x" * 100)
    with pytest.raises(DataError, match="Leave the file as it is"):
        shelf[0]
