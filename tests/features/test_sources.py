"""Which videos a folder or a list names, and what is recorded of a folder of pictures."""

from __future__ import annotations

import subprocess
import sys

from PIL import Image

from topa.features.sources import find_sources, hash_of, stamp_of


def test_lists_and_folders_name_their_videos(tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("a/1.mp4", "2.MKV", ".hidden.mp4", "notes.md"):
        (tmp_path / name).touch()
    assert [source.id for source in find_sources([tmp_path])] == ["2.MKV", "a/1.mp4"]
    listed = tmp_path / "list.txt"
    listed.write_text("# mine\na/1.mp4\n\nfolder\n", encoding="utf-8")
    assert [(s.id, s.path) for s in find_sources([listed])] == [
        ("a/1.mp4", tmp_path / "a" / "1.mp4"),
        ("folder", tmp_path / "folder"),
    ]


def test_a_folder_of_pictures_is_one_source(tmp_path):
    before = stamp_of(tmp_path)
    assert before == (0, 0)
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    one, size = hash_of(tmp_path), (tmp_path / "1.png").stat().st_size
    assert stamp_of(tmp_path)[0] == size
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "2.png")
    assert hash_of(tmp_path) != one


def test_a_lower_limit_of_memory_stays_as_it_is():
    """Where a cluster allows less than ours, asking for more would end every process."""
    script = """
import resource
from topa.features import sources
low = sources.MEMORY_LIMIT // 2
resource.setrlimit(resource.RLIMIT_AS, (low, low))
sources.limit_process()
assert resource.getrlimit(resource.RLIMIT_AS) == (low, low)
"""
    subprocess.run([sys.executable, "-c", script], check=True)
