"""LLMs of Meta's layout: shards joined, rows reordered, weights as they were."""

from __future__ import annotations

import json
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from topa.errors import CheckpointError, DataError
from topa.model.official.meta import convert_language, is_meta_folder, split_halves

ALONG_ROWS = ("wq", "wk", "wv", "w1", "w3", "output")
ALONG_COLUMNS = ("wo", "w2")


def split_shards(folder, params, tensors, count, embedding_axis):
    """Write an LLM as Meta's model parallelism splits it."""
    folder.mkdir()
    (folder / "params.json").write_text(json.dumps(params))
    for shard in range(count):
        pieces = {"rope.freqs": torch.arange(4.0)}
        for name, tensor in tensors.items():
            part = name.split(".")[-2]
            axis = embedding_axis if part == "tok_embeddings" else None
            axis = 0 if part in ALONG_ROWS else 1 if part in ALONG_COLUMNS else axis
            piece = tensor if axis is None else tensor.chunk(count, axis)[shard]
            pieces[name] = piece.clone()
        torch.save(pieces, folder / f"consolidated.{shard:02d}.pth")
    return folder


def weights_of(folder):
    return {
        name: tensor
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("embedding_axis", [1, 0], ids=["llama2", "llama3"])
def test_two_shards_convert_to_the_same_weights_as_one(
    tmp_path, make_llm_tensors, write_llm, embedding_axis, dtype
):
    params, tensors = make_llm_tensors()
    tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    convert_language(write_llm(tmp_path / "whole", params, tensors), tmp_path / "a")
    split = split_shards(tmp_path / "split", params, tensors, 2, embedding_axis)
    steps = []
    convert_language(split, tmp_path / "b", lambda *n: steps.append(n))
    whole, joined = weights_of(tmp_path / "a"), weights_of(tmp_path / "b")
    assert set(whole) == set(joined)
    assert all(torch.equal(whole[name], joined[name]) for name in whole)
    assert {tensor.dtype for tensor in joined.values()} == {dtype}
    assert steps[-1] == (3, 3)


def test_a_large_llm_is_written_in_several_files(
    tmp_path, make_llm_tensors, write_llm, monkeypatch
):
    monkeypatch.setattr("topa.model.official.meta._FILE_BYTES", 1)
    source = write_llm(tmp_path / "llm", *make_llm_tensors())
    convert_language(source, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 3
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(
        model.model.layers[2].mlp.up_proj.weight,
        make_llm_tensors()[1]["layers.2.feed_forward.w3.weight"],
    )


def test_the_settings_are_those_of_the_llm(tmp_path, make_llm_tensors, write_llm):
    params, tensors = make_llm_tensors(vocabulary=70, rope_theta=500000.0)
    config = convert_language(write_llm(tmp_path / "llm", params, tensors), tmp_path / "out")
    assert (config.vocab_size, config.intermediate_size) == (70, 48)
    assert (config.num_attention_heads, config.num_key_value_heads) == (4, 2)
    assert config.rope_parameters["rope_theta"] == 500000.0
    assert config.max_position_embeddings == 8192


@given(heads=st.integers(1, 5), pairs=st.integers(1, 6))
def test_rows_move_from_pairs_to_halves_within_their_head(heads, pairs):
    width = 2 * pairs
    rows = torch.arange(float(heads * width))[:, None]
    moved = split_halves(rows, heads).view(heads, width)
    for head in range(heads):
        start = head * width
        assert moved[head, :pairs].tolist() == list(range(start, start + width, 2))
        assert moved[head, pairs:].tolist() == list(range(start + 1, start + width, 2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_scaled_rope": True}, "Llama 3.1"),
        ({"moe": {"experts": 8}}, "not known here: moe"),
        ({"n_heads": None}, "no n_heads"),
        (
            {"n_kv_heads": 4},
            r"attention\.wk of layer 0 is \(16, 32\), params.json needs \(32, 32\)",
        ),
    ],
)
def test_settings_that_would_be_converted_wrongly_are_refused(
    tmp_path, make_llm_tensors, write_llm, change, message
):
    params, tensors = make_llm_tensors()
    params = {k: v for k, v in {**params, **change}.items() if v is not None}
    with pytest.raises(CheckpointError, match=message):
        convert_language(write_llm(tmp_path / "llm", params, tensors), tmp_path / "out")


def test_a_missing_shard_is_told(tmp_path, make_llm_tensors):
    folder = split_shards(tmp_path / "llm", *make_llm_tensors(), 2, 1)
    (folder / "consolidated.01.pth").unlink()
    with pytest.raises(CheckpointError, match="See that every"):
        convert_language(folder, tmp_path / "out")


def test_a_missing_tensor_is_told(tmp_path, make_llm_tensors, write_llm):
    params, tensors = make_llm_tensors()
    del tensors["layers.1.feed_forward.w2.weight"]
    with pytest.raises(CheckpointError, match=r"no tensor layers\.1\.feed_forward\.w2\.weight"):
        convert_language(write_llm(tmp_path / "llm", params, tensors), tmp_path / "out")


def test_shards_of_two_models_are_refused(tmp_path, make_llm_tensors, write_llm):
    params, tensors = make_llm_tensors()
    folder = write_llm(tmp_path / "llm", params, tensors)
    torch.save({**tensors, "extra.weight": torch.ones(1)}, folder / "consolidated.01.pth")
    with pytest.raises(CheckpointError, match=r"do not hold the same tensors \(extra\.weight\)"):
        convert_language(folder, tmp_path / "out")


def test_a_hostile_shard_is_refused(tmp_path, make_llm_tensors, write_llm):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    params, tensors = make_llm_tensors()
    folder = write_llm(tmp_path / "llm", params, {**tensors, "x": Hostile()})
    with pytest.raises(DataError, match=r"refused: the pickle asks for \w+\.mkdir"):
        convert_language(folder, tmp_path / "out")
    assert not (tmp_path / "made").exists()


def test_other_folders_are_not_of_metas_layout(tmp_path):
    assert not is_meta_folder(tmp_path)
    (tmp_path / "params.json").write_text("{}")
    assert not is_meta_folder(tmp_path)
    with pytest.raises(CheckpointError, match=r"no params\.json with consolidated"):
        convert_language(tmp_path, tmp_path / "out")
