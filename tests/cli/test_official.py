"""topa official: exit codes, what is printed, and the way from the authors' files to an answer."""

from __future__ import annotations

import base64
import json
import os
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from topa.cli import app
from topa.model.official.golden import BUNDLED


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch):
    """Undo what the command line tells other libraries."""
    monkeypatch.setattr(os, "environ", os.environ.copy())


def run(*args: object) -> Result:
    return CliRunner().invoke(app, ["official", *(str(arg) for arg in args)])


def test_check_without_a_folder_runs_on_the_bundled_ones():
    result = run("check", "--json")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert (report["fits"], report["tolerance"]) == (True, 1e-5)
    assert sorted(report["folders"]) == ["mini_llama2", "mini_llama3"]
    assert report["folders"]["mini_llama3"]["logits"]["largest_difference"] < 1e-5


def test_check_prints_every_gradient_and_fails_where_one_differs(tmp_path):
    folder = tmp_path / "changed"
    shutil.copytree(BUNDLED / "mini_llama2", folder)
    with safe_open(folder / "golden.safetensors", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    tensors["grad.layers.1.attention.gate1"][0, 0] += 1
    save_file(tensors, folder / "golden.safetensors", metadata=metadata)
    result = run("check", folder)
    assert result.exit_code == 1
    lines = {line.split()[1]: line for line in result.stdout.splitlines() if "│" in line}
    assert "WRONG" in lines["grad.layers.1.attention.gate1"]
    assert "ok" in lines["grad.layers.1.attention.gate2"]
    assert "7 of 7" in lines["imported"]
    assert "error: topa differs" in result.stderr


def test_check_of_a_folder_without_recordings_is_one_line(tmp_path):
    result = run("check", tmp_path)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1


def test_import_without_a_tokenizer_says_what_to_give(tmp_path):
    golden = BUNDLED / "mini_llama2"
    result = run(
        "import", "--llm", golden, "--checkpoint", golden / "checkpoint_3.pth", tmp_path / "out"
    )
    assert result.exit_code == 1
    assert "no tokenizer.model there or in the folder above. Give --tokenizer" in result.stderr


def test_a_tokenizer_of_another_llm_is_refused(tmp_path):
    golden = BUNDLED / "mini_llama2"  # knows 101 tokens
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\n")  # 1 and 256 special ones
    result = run(
        *("import", "--llm", golden, "--checkpoint", golden / "checkpoint_3.pth"),
        *("--tokenizer", tmp_path / "tokenizer.model", tmp_path / "out"),
    )
    assert result.exit_code == 1
    assert "257 tokens, the LLM knows 101" in result.stderr


def test_import_and_export_give_the_file_back(tmp_path):
    """A bundled checkpoint, its LLM in Meta's layout with a tokenizer of bytes beside it."""
    golden = BUNDLED / "mini_llama2"
    shutil.copytree(golden, tmp_path / "llm")
    shard = tmp_path / "llm" / "consolidated.00.pth"
    tensors = torch.load(shard, weights_only=True)
    for name in ("tok_embeddings.weight", "output.weight"):  # as many rows as tokens
        tensors[name] = torch.nn.functional.pad(tensors[name], (0, 0, 0, 512 - 101))
    torch.save(tensors, shard)
    lines = [base64.b64encode(bytes([n])) + b" %d\n" % n for n in range(256)]
    (tmp_path / "tokenizer.model").write_bytes(b"".join(lines))
    checkpoint = tmp_path / "llm" / "checkpoint_3.pth"
    out = tmp_path / "out"
    result = run("import", "--llm", tmp_path / "llm", "--checkpoint", checkpoint, out)
    assert result.exit_code == 0, result.stderr
    assert "Wrote" in result.stdout
    assert "3 prompts a layer, 4 frames" in result.stdout
    assert "no memory" in result.stderr
    result = run("export", out, tmp_path / "back.pth", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["tensors"]["adapter_query.weight"] == [6, 32]
    first = torch.load(checkpoint, weights_only=True)["model"]
    back = torch.load(tmp_path / "back.pth", weights_only=True)["model"]
    assert all(torch.equal(first[name], back[name]) for name in first)


def test_a_hostile_checkpoint_takes_one_line_and_exit_code_1(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    torch.save({"model": Hostile()}, tmp_path / "c.pth")
    result = run("import", "--llm", "x", "--checkpoint", tmp_path / "c.pth", tmp_path / "out")
    assert result.exit_code == 1
    assert "refused: the pickle asks for posix.mkdir" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("command", ["import", "check", "export"])
def test_every_command_has_help_with_an_example(command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"topa official {command}" in result.stdout
