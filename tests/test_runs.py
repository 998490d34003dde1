"""Files are whole or absent, also when the process is killed in the middle of a write."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topa import runs
from topa.errors import DataError
from topa.runs import (
    append_jsonl,
    atomic_path,
    cache_dir,
    digest,
    environment,
    read_json,
    read_jsonl,
    sha256_of,
    write_json,
    write_text,
)


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_whole_write_replaces_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert entries(tmp_path) == ["a.txt"]


def test_a_crash_leaves_the_old_file_and_no_temporary(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def crash() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half of the n")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        crash()
    assert path.read_text() == "old"
    assert entries(tmp_path) == ["a.txt"]


def test_a_crash_leaves_no_file_where_there_was_none(tmp_path):
    def interrupt() -> None:
        with atomic_path(tmp_path / "a.txt") as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert entries(tmp_path) == []


WRITER = """
import sys
from topa.runs import atomic_path
with atomic_path(sys.argv[1]) as temporary, open(temporary, "wb") as file:
    while True:
        file.write(b"new" * 100_000)
        file.flush()
        print(flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="the system has no SIGKILL")
def test_a_kill_in_the_middle_of_a_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "memory.bin"
    path.write_bytes(b"old")
    environ = os.environ | {"PYTHONPATH": str(Path(runs.__file__).parents[1])}
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, env=environ
    )
    assert writer.stdout is not None
    for _ in range(3):  # three blocks are on their way: the write is under way
        assert writer.stdout.readline() == b"\n"
    os.kill(writer.pid, signal.SIGKILL)
    writer.communicate()
    assert writer.returncode == -signal.SIGKILL

    assert path.read_bytes() == b"old"
    # A killed process cannot tidy up, but what it leaves has another, hidden name.
    left = [name for name in entries(tmp_path) if name != "memory.bin"]
    assert len(left) == 1
    assert left[0].startswith(".memory-")
    write_text(path, "newer")
    assert path.read_text() == "newer"


def test_the_suffix_is_kept_for_writers_that_look_at_it(tmp_path):
    with atomic_path(tmp_path / "m.safetensors") as temporary:
        assert temporary.suffix == ".safetensors"
        assert temporary.parent == tmp_path


def test_folders_on_the_way_are_made(tmp_path):
    write_json(tmp_path / "a" / "b" / "c.json", {"x": 1})
    assert read_json(tmp_path / "a" / "b" / "c.json") == {"x": 1}


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX systems")
def test_permissions_are_those_of_a_plain_open(tmp_path):
    (tmp_path / "plain").touch()
    write_text(tmp_path / "atomic", "x")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "atomic")}
    assert len(modes) == 1


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8")),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner),
        max_leaves=10,
    )
)
def test_json_is_read_back_as_written(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "value.json"
    write_json(path, value)
    assert read_json(path) == value


def test_json_stays_readable(tmp_path):
    write_json(tmp_path / "a.json", {"title": "Café"})
    assert "Café" in (tmp_path / "a.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (None, "file not found"),
        (b"{", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
    ],
)
def test_json_that_cannot_be_read(tmp_path, content, part):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=part) as caught:
        read_json(path)
    assert str(path) in str(caught.value)


def test_jsonl_rows_come_with_their_line_numbers(tmp_path):
    path = tmp_path / "log.jsonl"
    append_jsonl(path, {"step": 1})
    with open(path, "a") as file:
        file.write("\n")
    append_jsonl(path, {"step": 2, "text": "zwölf\nline"})
    assert list(read_jsonl(path)) == [
        (1, {"step": 1}),
        (3, {"step": 2, "text": "zwölf\nline"}),
    ]


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b'{"a": 1}\n{"a": \n', "line 2: not valid JSON"),
        (b'{"a": 1}\n\n[1]\n', "line 3: a JSON object is needed, got list"),
        (b'{"a": "\xe9"}\n', "not a UTF-8 text file"),
        (b"[" * 100_000 + b"\n", "line 1: not valid JSON"),
    ],
)
def test_jsonl_that_cannot_be_read(tmp_path, content, part):
    path = tmp_path / "log.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=part):
        list(read_jsonl(path))


def test_jsonl_that_is_missing(tmp_path):
    with pytest.raises(DataError, match="file not found"):
        list(read_jsonl(tmp_path / "none.jsonl"))


def test_sha256_is_that_of_the_standard(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_of(tmp_path / "abc") == expected


def test_digest_is_short_stable_and_keeps_its_parts_apart():
    assert digest("abc") == hashlib.sha256(b"abc").hexdigest()[:16]
    assert len({digest("ab", "c"), digest("a", "bc"), digest("abc"), digest("abc", "")}) == 4


def test_the_cache_goes_where_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("TOPA_CACHE", str(tmp_path / "cache"))
    folder = cache_dir("features", "conse")
    assert folder == tmp_path / "cache" / "features" / "conse"
    assert folder.is_dir()


def test_an_empty_setting_means_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TOPA_CACHE", "")
    monkeypatch.setattr(runs.platformdirs, "user_cache_dir", lambda name: str(tmp_path / name))
    assert cache_dir() == tmp_path / "topa"


def test_the_environment_can_be_written_down(tmp_path):
    recorded = environment()
    write_json(tmp_path / "environment.json", recorded)
    assert read_json(tmp_path / "environment.json") == json.loads(json.dumps(recorded))
    assert recorded["python"] == sys.version.split()[0]
    assert {"torch", "transformers", "numpy"} <= set(recorded["packages"])
