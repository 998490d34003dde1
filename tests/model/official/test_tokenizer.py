"""Meta's tokenizer.model gives the same ids through transformers as through its own library."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter

from topa.data.templates import AUTHORS_VERSION, PromptBuilder
from topa.errors import CheckpointError, ConfigError
from topa.model.official import tokenizer as module
from topa.model.official.tokenizer import convert_tokenizer, find_tokenizer

TEXTS = [
    "Instruction: Choose the correct answer based on the video and question.\nVideo:",
    "Question: What does the man do after he opens the door?\nChoices: \n(A) He sits down.",
    "Answer: The correct choice is (A)",
    "Two  spaces, 12345 numbers, a tab\tand\n\n\nnew lines ",
    "Überraschung: ein Hund läuft über die Wiese 🐕, 犬が走る",
]


@pytest.fixture(scope="module")
def sentencepiece_file(tmp_path_factory) -> Path:
    """A small tokenizer trained as that of Llama 2 was: BPE, bytes for the rest, no changes."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="the extra official is missing")
    folder = tmp_path_factory.mktemp("sp")
    (folder / "corpus.txt").write_text("\n".join(TEXTS * 20), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "corpus.txt"),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=420,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=0.99,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    return folder / "tokenizer.model"


@pytest.fixture(scope="module")
def tiktoken_file(tmp_path_factory) -> Path:
    """A file of ranks as that of Llama 3: single bytes first, then merges in order."""
    ranks = {bytes([value]): value for value in range(256)}
    for word in (b"th", b" th", b" the", b"in", b"ing", b"st", b"er", b"an", b" an", b"ch"):
        ranks[word] = len(ranks)
    for word in (b"ue", b"ion", b"on", b"ideo", b"id", b"eo", b"12", b"34", b"\n\n", b"  "):
        ranks.setdefault(word, len(ranks))
    path = tmp_path_factory.mktemp("tt") / "tokenizer.model"
    lines = [base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()]
    path.write_bytes(b"".join(lines))
    return path


@pytest.mark.parametrize("text", TEXTS)
def test_llama_2_has_the_ids_of_sentencepiece(sentencepiece_file, tmp_path, text):
    import sentencepiece

    original = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_file))
    convert_tokenizer(sentencepiece_file, tmp_path)
    converted = AutoTokenizer.from_pretrained(tmp_path)
    assert converted(text)["input_ids"] == [original.bos_id(), *original.encode(text)]
    assert len(converted) == original.vocab_size()
    assert (converted.bos_token_id, converted.eos_token_id) == (1, 2)
    decoded = converted.decode(converted(text)["input_ids"], skip_special_tokens=True)
    assert decoded == text


@pytest.mark.parametrize("text", TEXTS)
def test_llama_3_has_the_ids_of_tiktoken(tiktoken_file, tmp_path, monkeypatch, text):
    tiktoken = pytest.importorskip("tiktoken")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    from tiktoken.load import load_tiktoken_bpe

    ranks = load_tiktoken_bpe(str(tiktoken_file))
    pattern = TikTokenConverter().pattern
    original = tiktoken.Encoding("test", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    convert_tokenizer(tiktoken_file, tmp_path)
    converted = AutoTokenizer.from_pretrained(tmp_path)
    start = len(ranks)  # Llama 3's special tokens follow those of the file
    assert converted(text)["input_ids"] == [start, *original.encode(text)]
    assert (converted.bos_token_id, converted.eos_token_id) == (start, start + 1)
    assert converted.convert_tokens_to_ids("<|eot_id|>") == start + 9
    assert len(converted) == start + 256
    assert converted.decode(original.encode(text)) == text


@pytest.mark.parametrize("kind", ["sentencepiece_file", "tiktoken_file"])
def test_prompts_begin_with_the_start_token(request, tmp_path, kind):
    converted = convert_tokenizer(request.getfixturevalue(kind), tmp_path)
    builder = PromptBuilder(converted, 4)
    assert builder.start_ids == (converted.bos_token_id,)
    assert builder.eos_id == converted.eos_token_id
    ids = builder.open("Who runs").segments[1].ids
    assert converted.decode(ids).endswith("Question: Who runs?\nAnswer:")


def test_prompts_of_the_authors_have_the_tokens_of_their_code(sentencepiece_file, tmp_path):
    """Theirs: start, sentencepiece of the text before, slots, a newline, that of the rest, end."""
    import sentencepiece

    original = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_file))
    builder = PromptBuilder(convert_tokenizer(sentencepiece_file, tmp_path), 4, AUTHORS_VERSION)
    newline = original.piece_to_id("<0x0A>")
    asked = "What does the man do?"
    before = {
        "choice": "Instruction: Choose the correct answer based on the video and question.",
        "open": "Instruction: Predict the answer based on the video and question.",
        "caption": "Instruction: Generate a summary for the video.",
    }
    after = {
        "choice": f"Question: {asked}\nChoices: \n(A) He sits.\n(B) He runs.\n"
        "Answer: The correct choice is (B)",
        "open": f"Question: {asked}\nAnswer: He runs",
        "caption": "\nDescription: He runs",
    }
    prompts = {
        "choice": builder.choice(asked, ["He sits.", "He runs."], 1),
        "open": builder.open(asked, "He runs"),
        "caption": builder.caption("He runs"),
    }
    for name, prompt in prompts.items():
        found = [token for segment in prompt.segments for token in segment.ids]
        start = [original.bos_id(), *original.encode(f"{before[name]}\nVideo:")]
        rest = [newline, *original.encode(after[name]), original.eos_id()]
        assert found == [*start, 0, 0, 0, 0, *rest], name


def test_the_file_is_found_beside_the_llm_or_above_it(tmp_path):
    (tmp_path / "7B").mkdir()
    with pytest.raises(CheckpointError, match=r"no tokenizer\.model .* Give --tokenizer"):
        find_tokenizer(tmp_path / "7B")
    (tmp_path / "tokenizer.model").touch()
    assert find_tokenizer(tmp_path / "7B") == tmp_path / "tokenizer.model"
    (tmp_path / "7B" / "tokenizer.model").touch()
    assert find_tokenizer(tmp_path / "7B") == tmp_path / "7B" / "tokenizer.model"


def test_a_file_of_another_kind_is_refused(tmp_path):
    pytest.importorskip("sentencepiece", reason="the extra official is missing")
    (tmp_path / "tokenizer.model").write_bytes(b"not a tokenizer")
    with pytest.raises(CheckpointError, match="neither a sentencepiece nor a tiktoken file"):
        convert_tokenizer(tmp_path / "tokenizer.model", tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\nIg== one\n")
    with pytest.raises(CheckpointError, match=r"line 2: not a token and its rank"):
        convert_tokenizer(tmp_path / "tokenizer.model", tmp_path)
    with pytest.raises(CheckpointError, match="file not found"):
        convert_tokenizer(tmp_path / "none.model", tmp_path)


def test_a_missing_package_is_named_with_its_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\x0b")
    with pytest.raises(ConfigError, match=r"sentencepiece and google\.protobuf.*\[official\]"):
        convert_tokenizer(tmp_path / "tokenizer.model", tmp_path)
