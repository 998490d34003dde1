"""Which commit a result names as that of the code."""

from __future__ import annotations

import subprocess

from topa.eval.provenance import commit_of


def git(folder, *words):
    user = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    subprocess.run(["git", "-C", str(folder), *user, *words], check=True, capture_output=True)


def test_the_commit_is_that_of_the_repository_that_holds_the_file(tmp_path):
    """An environment within a user's repository: the commit there is not that of topa."""
    git(tmp_path, "init")
    file = tmp_path / "code.py"
    file.write_text("")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "-m", "first")
    installed = tmp_path / "venv" / "topa.py"
    installed.parent.mkdir()
    installed.write_text("")
    found = commit_of(file)
    assert found is not None
    assert len(found) == 12
    assert commit_of(installed) is None
    file.write_text("changed")
    assert commit_of(file) == f"{found}-dirty"
