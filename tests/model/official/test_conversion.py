"""Import makes a checkpoint that works like any other; export gives the authors' file back."""

from __future__ import annotations

import base64
import json
import os
import pickle

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from topa.answer import Topa
from topa.errors import CheckpointError, ConfigError, DataError
from topa.features.encoder import load_encoder
from topa.features.memory import Memory
from topa.features.video import Clip
from topa.model.config import TopaConfig
from topa.model.official.conversion import ENCODER, export_checkpoint, import_checkpoint
from topa.model.topa import TopaForConditionalGeneration

from .conftest import ADAPTER, FEATURE, FRAMES, LAYERS

RANKS = 256


@pytest.fixture
def files(tmp_path, make_llm_tensors, write_llm, make_trained):
    """Writes what a user of the authors' code has, Llama 3 in kind."""
    params, tensors = make_llm_tensors(vocabulary=RANKS + 256, rope_theta=500000.0)
    write_llm(tmp_path / "llama3" / "8B", params, tensors)
    lines = [base64.b64encode(bytes([value])) + b" %d\n" % value for value in range(RANKS)]
    (tmp_path / "llama3" / "tokenizer.model").write_bytes(b"".join(lines))
    torch.save({"model": make_trained(2), "epoch": 19}, tmp_path / "checkpoint_19.pth")
    memory = torch.nn.functional.normalize(torch.randn(50, FEATURE), dim=-1)
    (tmp_path / "memory.pkl").write_bytes(pickle.dumps(memory))
    return tmp_path


@pytest.fixture
def clip_folder(tmp_path):
    """A tiny CLIP model of width FEATURE."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    text = {"vocab_size": 4, "bos_token_id": 2, "eos_token_id": 3, "max_position_embeddings": 8}
    folder = tmp_path / "clip"
    CLIPModel(
        CLIPConfig(
            text_config={**sizes, **text, "num_attention_heads": 2},
            vision_config={**sizes, "num_attention_heads": 2, "image_size": 16, "patch_size": 8},
            projection_dim=FEATURE,
        )
    ).save_pretrained(folder)
    size = {"shortest_edge": 16}
    CLIPImageProcessorPil(size=size, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1, "a": 2, "b": 3}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


def take_in(files, out="out", **settings):
    values = {"memory": files / "memory.pkl", "adapter_length": ADAPTER, **settings}
    llm = str(values.pop("llm", files / "llama3" / "8B"))
    return import_checkpoint(files / "checkpoint_19.pth", llm, files / out, **values)


def test_an_imported_checkpoint_answers_questions(files, clip_folder):
    done = take_in(files, encoder=str(clip_folder))
    assert (done.memory_rows, done.config.num_frames) == (50, FRAMES)
    assert any("lower 1 of 3 layers" in note for note in done.notes)
    # Folders can be moved: the LLM and the memory are found within.
    (files / "out").rename(files / "moved")
    topa = Topa.from_pretrained(files / "moved", device="cpu")
    assert topa.model.config.scoring == "selection"
    assert topa.model.config.keep_slot_positions
    assert len(topa.memory) == 50
    images = [Image.new("RGB", (20, 20), (80 * i, 200, 0)) for i in range(2)]
    clip = Clip("clip.mp4", [0.0, 1.0], images, 2.0)
    answer = topa.ask(clip, "What is green?", ["a frog", "the sky", "a car"])
    assert sum(answer.probabilities) == pytest.approx(1)
    assert isinstance(topa.ask(clip, "What is green?", max_new_tokens=3).text, str)
    assert topa.explain(clip, k=1)[0].captions[0].startswith("memory.pkl, row ")


def test_an_encoder_that_is_named_is_recorded(files, clip_folder):
    done = take_in(files, encoder=str(clip_folder))
    fingerprint = load_encoder(str(clip_folder)).fingerprint
    assert done.config.encoder_fingerprint == fingerprint
    assert Memory.load(files / "out" / "memory").fingerprint == fingerprint
    assert not any("weights unseen" in note for note in done.notes)
    done = take_in(files, "second")
    assert (done.config.encoder, done.config.encoder_fingerprint) == (ENCODER, "")
    assert any("weights unseen" in note for note in done.notes)


def test_an_encoder_of_another_width_is_refused(files, clip_folder, make_trained):
    torch.save({"model": make_trained(2, 12)}, files / "checkpoint_19.pth")
    with pytest.raises(CheckpointError, match=r"features of width 12, .*clip has 10"):
        take_in(files, memory=None, encoder=str(clip_folder))
    assert not (files / "out").exists()


def test_where_a_checkpoint_comes_from_is_kept(files):
    take_in(files)
    kept = json.loads((files / "out" / "official.json").read_text())
    assert kept["epoch"] == 19
    assert kept["sources"]["checkpoint"]["file"] == "checkpoint_19.pth"
    assert len(kept["sources"]["memory"]["sha256"]) == 64
    assert (kept["adapted_layers"], kept["skipped_layers"], kept["memory_rows"]) == (2, 1, 50)
    config = json.loads((files / "out" / "config.json").read_text())
    assert (config["llm"], config["encoder"]) == ("./llm", "openai/clip-vit-large-patch14")
    assert str(files) not in json.dumps([kept, config])


def test_export_gives_back_the_tensors_bit_by_bit(files):
    take_in(files)
    export_checkpoint(files / "out", files / "back.pth")
    first = torch.load(files / "checkpoint_19.pth", weights_only=True)
    back = torch.load(files / "back.pth", weights_only=True)
    assert (set(back), back["epoch"]) == ({"model", "epoch"}, 19)
    assert set(back["model"]) == set(first["model"])
    for name, tensor in first["model"].items():
        assert back["model"][name].numpy().tobytes() == tensor.numpy().tobytes()
        assert back["model"][name].shape == tensor.shape


def test_an_llm_of_hugging_face_is_used_where_it_is(files):
    """The converted LLM of a first import serves the second, and both models are the same."""
    take_in(files, "first")
    done = take_in(files, "second", llm=files / "first" / "llm")
    assert not (files / "second" / "llm").exists()
    assert done.config.rope_theta == 10000.0
    assert done.config.llm == str(files / "first" / "llm")
    ids, slots = torch.arange(30, 50)[None], torch.full((1, 20), -1)
    slots[0, 4 : 4 + FRAMES] = torch.arange(FRAMES)
    features = torch.randn(1, FRAMES, FEATURE)
    first, second = (
        TopaForConditionalGeneration.from_pretrained(files / name)(
            input_ids=ids, slot_index=slots, features=features
        ).logits
        for name in ("first", "second")
    )
    assert torch.equal(first, second)


def test_the_converted_llm_is_one_that_transformers_loads_by_itself(files):
    take_in(files)
    llm = AutoModelForCausalLM.from_pretrained(files / "out" / "llm")
    assert llm.config.num_hidden_layers == LAYERS
    assert llm.config.rope_parameters["rope_theta"] == 500000.0  # as params.json has it
    ids = AutoTokenizer.from_pretrained(files / "out" / "llm")("ab")["input_ids"]
    assert ids == [RANKS, ord("a"), ord("b")]


def test_a_memory_is_kept_as_it_is(files):
    rows = torch.nn.functional.normalize(torch.randn(40, FEATURE), dim=-1).half()
    (files / "memory.pkl").write_bytes(pickle.dumps(rows))
    take_in(files)
    assert torch.equal(Memory.load(files / "out" / "memory").features, rows.float())


def test_rows_without_direction_and_length_are_told(files):
    rows = 3 * torch.nn.functional.normalize(torch.randn(6, FEATURE), dim=-1)
    rows[2], rows[4, 0] = 0, torch.nan
    (files / "memory.pkl").write_bytes(pickle.dumps(rows))
    done = take_in(files)
    memory = Memory.load(files / "out" / "memory")
    assert memory.captions == [f"memory.pkl, row {n}" for n in (0, 1, 3, 5)]
    assert torch.allclose(memory.features, rows[[0, 1, 3, 5]] / 3)
    assert any("2 rows of the memory are zero" in note for note in done.notes)
    assert any("not of unit length" in note for note in done.notes)


def test_an_import_without_memory_says_so_and_answers_without(files, clip_folder, caplog):
    done = take_in(files, memory=None, encoder=str(clip_folder))
    assert "no memory" in done.notes[0]
    assert Topa.from_pretrained(files / "out", device="cpu").memory is None
    assert "has no memory" in caplog.text


@pytest.mark.parametrize(
    ("memory", "message"),
    [
        (torch.randn(5, 11), r"a memory of width 10 is needed, got \(5, 11\)"),
        (torch.randn(5), "a memory of width 10 is needed"),
        ({"a": torch.randn(5, FEATURE)}, "got 1 named tensors"),
    ],
)
def test_a_memory_of_another_encoder_is_refused(files, memory, message):
    (files / "memory.pkl").write_bytes(pickle.dumps(memory))
    with pytest.raises(DataError, match=message):
        take_in(files)
    assert not (files / "out").exists()


def test_a_hostile_memory_is_refused_before_anything_is_written(files):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(files / "made"),)

    (files / "memory.pkl").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(DataError, match=r"refused: the pickle asks for \w+\.mkdir"):
        take_in(files)
    assert not (files / "made").exists()
    assert not (files / "out").exists()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("hidden_size", 64, "trained on an LLM of 32 width, this one has 64"),
        ("num_hidden_layers", 2, "trained on an LLM of 3 layers, this one has 2"),
        ("num_attention_heads", 2, "trained on an LLM of 4 heads, this one has 2"),
    ],
)
def test_another_llm_is_refused(files, field, value, message):
    take_in(files, "first")
    config = AutoModelForCausalLM.from_pretrained(files / "first" / "llm").config
    setattr(config, field, value)
    config.head_dim = config.hidden_size // config.num_attention_heads
    other = AutoModelForCausalLM.from_config(config)
    other.save_pretrained(files / "other")
    AutoTokenizer.from_pretrained(files / "first" / "llm").save_pretrained(files / "other")
    with pytest.raises(CheckpointError, match=message):
        take_in(files, llm=files / "other")


def test_a_folder_in_use_is_left_alone(files):
    (files / "out").mkdir()
    (files / "out" / "mine.txt").touch()
    with pytest.raises(ConfigError, match="the folder is not empty"):
        take_in(files)
    (files / "out" / "mine.txt").unlink()
    (files / "out" / "llm").mkdir()  # of an import that was stopped
    assert take_in(files).memory_rows == 50


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "lora"}, "variant is 'lora'"),
        ({"slots_per_frame": 2}, "slots_per_frame is 2"),
        ({"dictionary_size": 7}, "dictionary_size is 7"),
    ],
)
def test_what_the_authors_code_does_not_know_is_not_exported(tmp_path, settings, message):
    TopaConfig(**settings).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=message):
        export_checkpoint(tmp_path, tmp_path / "out.pth")


def test_only_trained_tensors_are_in_the_checkpoint(files):
    take_in(files)
    with safe_open(files / "out" / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert len(names) == 2 + 2 * 3
    assert not any("q_proj" in name for name in names)
