"""Meta's tokenizer.model, converted by transformers' own converters."""

from __future__ import annotations

import base64
import binascii
import re
from importlib.util import find_spec
from pathlib import Path

from tokenizers import Tokenizer, processors
from transformers import LlamaTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import TikTokenConverter

from topa.errors import CheckpointError, ConfigError

__all__ = ["convert_tokenizer", "find_tokenizer"]

# The special tokens of Llama 3, in the order of their ids, which follow those of the file.
_START, _END = "<|begin_of_text|>", "<|end_of_text|>"
_SPECIAL = [
    _START,
    _END,
    *(f"<|reserved_special_token_{i}|>" for i in range(4)),
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|reserved_special_token_4|>",
    "<|eot_id|>",
    *(f"<|reserved_special_token_{i}|>" for i in range(5, 251)),
]
_RANK_LINE = re.compile(rb"[A-Za-z0-9+/]+=* \d+\s*")
_PACKAGES = ("sentencepiece", "google.protobuf")


def find_tokenizer(folder: str | Path) -> Path:
    """Return the tokenizer.model in the folder of an LLM, or in the one above it (Llama 2).

    Raises:
        CheckpointError: There is none.
    """
    folder = Path(folder)
    for place in (folder, folder.resolve().parent):
        if (place / "tokenizer.model").is_file():
            return place / "tokenizer.model"
    raise CheckpointError(
        "no tokenizer.model there or in the folder above",
        where=folder,
        mend="Give --tokenizer FILE.",
    )


def convert_tokenizer(source: str | Path, folder: str | Path) -> PreTrainedTokenizerBase:
    """Write the tokenizer of Llama 2 (sentencepiece) or Llama 3 (tiktoken) for transformers.

    Args:
        source: tokenizer.model; its content tells which of the two it is.
        folder: Folder of the LLM to write to.

    Raises:
        CheckpointError: The file is neither.
        ConfigError: The packages that read sentencepiece files are missing.
    """
    source = Path(source)
    if not source.is_file():
        raise CheckpointError("file not found", where=source, mend="Give --tokenizer FILE.")
    with open(source, "rb") as file:
        is_tiktoken = _RANK_LINE.fullmatch(file.readline(1 << 16)) is not None
    tokenizer = _read_tiktoken(source) if is_tiktoken else _read_sentencepiece(source)
    tokenizer.save_pretrained(folder)
    return tokenizer


def _read_sentencepiece(source: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of Llama 2.

    Raises:
        CheckpointError: The file is not one of sentencepiece.
        ConfigError: A package is missing.
    """
    missing = [name for name in _PACKAGES if find_spec(name.split(".")[0]) is None]
    if missing:
        raise ConfigError(
            f"reading the tokenizer of Llama 2 needs {' and '.join(missing)}",
            where=source,
            mend="pip install -e '.[official]'",
        )
    from google.protobuf.message import DecodeError
    from transformers.convert_slow_tokenizer import SentencePieceExtractor

    try:
        pieces = SentencePieceExtractor(str(source)).proto.pieces
    except DecodeError:
        pieces = []
    if not pieces:
        raise CheckpointError(
            "neither a sentencepiece nor a tiktoken file",
            where=source,
            mend="Give the tokenizer.model that Meta distributes with the LLM.",
        )
    fields = LlamaTokenizer.convert_to_native_format(vocab_file=str(source))
    return LlamaTokenizer(**fields, legacy=False, add_bos_token=True)


def _read_tiktoken(source: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of Llama 3.

    Raises:
        CheckpointError: A line of the file is damaged.
    """
    backend: Tokenizer = _RankConverter(str(source), extra_special_tokens=_SPECIAL).converted()
    start = backend.token_to_id(_START)
    backend.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(
                single=f"{_START} $A",
                pair=f"{_START} $A {_START} $B",
                special_tokens=[(_START, start)],
            ),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=_START,
        eos_token=_END,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


class _RankConverter(TikTokenConverter):
    """The converter, reading the file itself: tiktoken's reader keeps copies by path name."""

    @staticmethod
    def load_tiktoken_bpe(tiktoken_url: str) -> dict[bytes, int]:
        """Return the rank of each token.

        Raises:
            CheckpointError: A line of the file is damaged.
        """
        ranks = {}
        with open(tiktoken_url, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    token, rank = line.split()
                    ranks[base64.b64decode(token, validate=True)] = int(rank)
                except (ValueError, binascii.Error) as error:
                    raise CheckpointError(
                        f"not a token and its rank ({error})",
                        where=f"{tiktoken_url}, line {number}",
                        mend="Give the tokenizer.model that Meta distributes with the LLM.",
                    ) from None
        return ranks
