"""LLMs in Meta's layout (params.json, consolidated.NN.pth), converted to what transformers loads.

Shards are pieces of the same tensors; they are joined along the axis that Meta's model
parallelism split. Rows of wq and wk are reordered, because transformers rotates the two
halves of a head and Meta's code rotates pairs of neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig

from topa.errors import CheckpointError
from topa.features.pickles import load_tensors
from topa.runs import atomic_path, read_json, write_json

__all__ = ["MetaLanguage", "convert_language", "is_meta_folder"]

_KNOWN = {
    "dim",
    "ffn_dim_multiplier",
    "max_batch_size",
    "max_seq_len",
    "multiple_of",
    "n_heads",
    "n_kv_heads",
    "n_layers",
    "norm_eps",
    "rope_theta",
    "use_scaled_rope",
    "vocab_size",
}
_LAYER_NAMES = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_OUTER_NAMES = {
    "tok_embeddings": "model.embed_tokens",
    "norm": "model.norm",
    "output": "lm_head",
}
_ALONG_ROWS = ("wq", "wk", "wv", "w1", "w3", "output")
_ALONG_COLUMNS = ("wo", "w2")
_FILE_BYTES = 4 << 30

Progress = Callable[[int, int], None]
"""Called with the number of layers done and that of all."""


def is_meta_folder(folder: str | Path) -> bool:
    """Whether a folder holds an LLM in Meta's layout: params.json and consolidated.*.pth."""
    folder = Path(folder)
    return (folder / "params.json").is_file() and bool(_shard_paths(folder))


def _shard_paths(folder: Path) -> list[Path]:
    return sorted(folder.glob("consolidated.*.pth"))


@dataclass(frozen=True)
class MetaLanguage:
    """An LLM in Meta's layout, its tensors read from disk when they are asked for.

    Attributes:
        folder: Where it lies.
        params: What params.json says.
        shards: The tensors of each consolidated.NN.pth, by name.
    """

    folder: Path
    params: dict[str, Any]
    shards: list[Mapping[str, Tensor]]

    @classmethod
    def open(cls, folder: str | Path) -> MetaLanguage:
        """Open the shards of a folder.

        Raises:
            CheckpointError: params.json or shards are missing, of a kind that is not known, or
                the shards do not belong together.
            DataError: A shard is damaged or is more than tensors.
        """
        folder = Path(folder)
        if not is_meta_folder(folder):
            raise CheckpointError(
                "no params.json with consolidated.*.pth beside it",
                where=folder,
                mend="Give the folder of one Llama model as Meta distributes it.",
            )
        params = read_json(folder / "params.json")
        _check_params(params, folder / "params.json")
        shards: list[Mapping[str, Tensor]] = []
        for path in _shard_paths(folder):
            tensors = load_tensors(path)
            if not isinstance(tensors, dict):
                raise CheckpointError("holds one tensor, not those of an LLM", where=path)
            tensors.pop("rope.freqs", None)  # a table that follows from the other settings
            if shards and set(tensors) != set(shards[0]):
                odd = sorted(set(tensors) ^ set(shards[0]))[0]
                raise CheckpointError(
                    f"the shards do not hold the same tensors ({odd})",
                    where=path,
                    mend="Leave in the folder only the shards of one model, and all of them.",
                )
            shards.append(tensors)
        return cls(folder, params, shards)

    def tensor(self, name: str) -> Tensor:
        """Return a whole tensor, its pieces joined.

        Raises:
            CheckpointError: There is none of this name.
        """
        if name not in self.shards[0]:
            raise CheckpointError(f"no tensor {name}", where=self.folder)
        pieces = [shard[name] for shard in self.shards]
        axis = self._axis(name, pieces[0])
        return pieces[0] if axis is None or len(pieces) == 1 else torch.cat(pieces, axis)

    def _axis(self, name: str, piece: Tensor) -> int | None:
        """Return the axis that a tensor was split along; None for a copy in every shard."""
        part = name.removesuffix(".weight").rsplit(".", 1)[-1]
        if part in _ALONG_ROWS:
            return 0
        if part in _ALONG_COLUMNS:
            return 1
        if part == "tok_embeddings":  # by width in Llama 2, by vocabulary in Llama 3
            return 0 if piece.shape[1] == self.params["dim"] else 1
        return None

    def config(self) -> LlamaConfig:
        """Return the configuration for transformers; sizes are those of the tensors.

        Raises:
            CheckpointError: A tensor is missing, or has not the size that params.json implies.
        """
        params, dtype = self.params, self.shards[0]["norm.weight"].dtype
        dim, heads = params["dim"], params["n_heads"]
        vocabulary = self._rows("output.weight")
        theta = float(params.get("rope_theta", 10000.0))
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=dim,
            intermediate_size=self._rows("layers.0.feed_forward.w1.weight"),
            num_hidden_layers=params["n_layers"],
            num_attention_heads=heads,
            num_key_value_heads=params.get("n_kv_heads") or heads,
            rms_norm_eps=params["norm_eps"],
            # params.json does not say; these are the lengths of Llama 2 and Llama 3.
            max_position_embeddings=8192 if theta >= 500000 else 4096,
            rope_parameters={"rope_type": "default", "rope_theta": theta},
            tie_word_embeddings=False,
            dtype=dtype,
        )
        config.architectures = ["LlamaForCausalLM"]
        return config

    def _rows(self, name: str) -> int:
        if name not in self.shards[0]:
            raise CheckpointError(f"no tensor {name}", where=self.folder)
        return sum(len(shard[name]) for shard in self.shards)

    def outer_tensors(self) -> dict[str, Tensor]:
        """Return embedding, last norm and head under the names of transformers."""
        return {
            f"{new}.weight": self.tensor(f"{old}.weight").contiguous()
            for old, new in _OUTER_NAMES.items()
        }

    def layer_tensors(self, index: int) -> dict[str, Tensor]:
        """Return the tensors of one layer under the names of transformers.

        Raises:
            CheckpointError: One is missing, or has not the size that params.json implies.
        """
        heads = self.params["n_heads"]
        tensors = {}
        for old, new in _LAYER_NAMES.items():
            tensor = self.tensor(f"layers.{index}.{old}.weight")
            if old in ("attention.wq", "attention.wk"):
                count = heads if old == "attention.wq" else self.params.get("n_kv_heads") or heads
                tensor = split_halves(self._checked(tensor, count, old, index), count)
            tensors[f"model.layers.{index}.{new}.weight"] = tensor.contiguous()
        return tensors

    def _checked(self, tensor: Tensor, heads: int, name: str, layer: int) -> Tensor:
        """Return queries or keys, if they are of so many heads.

        Raises:
            CheckpointError: They are not: a shard is missing, say.
        """
        dim = self.params["dim"]
        wanted = (dim // self.params["n_heads"] * heads, dim)
        if tuple(tensor.shape) != wanted:
            raise CheckpointError(
                f"{name} of layer {layer} is {tuple(tensor.shape)}, params.json needs {wanted}",
                where=self.folder,
                mend="See that every consolidated.*.pth of the model is there.",
            )
        return tensor


def _check_params(params: Any, path: Path) -> None:
    """Refuse settings that the conversion would get wrong.

    Raises:
        CheckpointError: Says which.
    """
    needed = {"dim", "n_heads", "n_layers", "norm_eps"}
    missing = sorted(needed - set(params)) if isinstance(params, dict) else sorted(needed)
    if missing:
        raise CheckpointError(f"no {', '.join(missing)} for a Llama model", where=path)
    odd = sorted(set(params) - _KNOWN)
    if params.get("use_scaled_rope"):
        odd.append("use_scaled_rope (Llama 3.1 and later)")
    if odd:
        raise CheckpointError(
            f"not known here: {', '.join(odd)}",
            where=path,
            mend="Use the model in Hugging Face's layout.",
        )


def split_halves(weight: Tensor, heads: int) -> Tensor:
    """Reorder the rows of wq or wk from rotary pairs (2i, 2i+1) to halves (i, i + d/2).

    Args:
        weight: [heads * d, D].
        heads: Number of heads.
    """
    width = len(weight) // heads
    pairs = weight.reshape(heads, width // 2, 2, weight.shape[1])
    return pairs.transpose(1, 2).reshape(weight.shape)


def convert_language(
    source: str | Path, folder: str | Path, progress: Progress | None = None
) -> LlamaConfig:
    """Write an LLM of Meta's layout to a folder that transformers loads, weights as they are.

    A few layers are in memory at a time. Files are written whole or not at all, and the index
    last: a folder that was not finished does not load.

    Args:
        source: Folder with params.json and consolidated.*.pth.
        folder: Folder to write.
        progress: Told how far it is.

    Raises:
        CheckpointError: The source is incomplete, or of a kind that is not known.
        DataError: A shard is damaged or is more than tensors.
    """
    language = MetaLanguage.open(source)
    config = language.config()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    parts = list(_parts(config))
    places: dict[str, str] = {}
    total = 0
    for number, part in enumerate(parts, start=1):
        tensors = language.outer_tensors() if number == 1 else {}
        for layer in part:
            tensors |= language.layer_tensors(layer)
        name = f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        with atomic_path(folder / name) as temporary:
            save_file(tensors, temporary, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, name)
        total += sum(tensor.nbytes for tensor in tensors.values())
        if progress is not None:
            progress(part.stop, config.num_hidden_layers)
    config.save_pretrained(folder)
    write_json(
        folder / "model.safetensors.index.json",
        {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))},
    )
    return config


def _parts(config: LlamaConfig) -> Iterator[range]:
    """Yield ranges of layers that make a file of about 4 GiB."""
    size = config.hidden_size * (4 * config.hidden_size + 3 * config.intermediate_size) * 2
    step = max(1, _FILE_BYTES // size)
    for start in range(0, config.num_hidden_layers, step):
        yield range(start, min(start + step, config.num_hidden_layers))
