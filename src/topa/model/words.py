"""Frame features said in words: a sparse code over a dictionary, put into the video slots.

A feature of the text region is close to a sparse sum of the features of words. Orthogonal
matching pursuit finds the words; each takes one slot with the LLM's own embedding of it, so
that an LLM reads a frame before any training. The projector then learns what words leave
out. (The decomposition is that of SpLiCE, arXiv 2402.10376; putting it into slots is ours.)
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from topa.errors import ConfigError
from topa.tideo.schema import Tideo

_WORD = re.compile(r"[a-z][a-z'-]+")
_EMPTY_WORDS = frozenset(
    _WORD.findall(
        "an the of in on at to and or with by for from as is are was were be been being it its"
        " his her their them he him she they this that these those into onto over under up down"
        " out off one two three who what which while then than but not no very some all each"
        " other another has have had having does do did beside behind between through across"
        " along around near against before after above below inside outside toward towards next"
        " first last only just so too also more most such there here where when how why if about"
        " again still back away both"
    )
)
_PADDING = -1
_MOST_TOKENS = 4


def collect_words(
    tideos: Sequence[Tideo], tokenizer: PreTrainedTokenizerBase, least: int = 2
) -> list[str]:
    """Return the words of at least `least` frames and at most 4 tokens, commonest first."""
    counts: Counter[str] = Counter()
    for tideo in tideos:
        for frame in tideo.frames:
            found = {word for text in frame.texts for word in _WORD.findall(text.lower())}
            # Sorted: a set has another order in every process, and ties keep the order of coming.
            counts.update(w for w in sorted(found) if len(w) > 2 and w not in _EMPTY_WORDS)
    common = [word for word, count in counts.most_common() if count >= least]
    tokens = tokenizer([f" {word}" for word in common], add_special_tokens=False)["input_ids"]
    return [word for word, ids in zip(common, tokens, strict=True) if len(ids) <= _MOST_TOKENS]


class WordDictionary(nn.Module):
    """Words with their features and tokens.

    Attributes:
        features: [V, d] unit text features of the words.
        tokens: [V, L] their token ids, -1 in the padding.

    Args:
        size: V.
        feature_dim: d.
        max_tokens: L; longer words are left out by `fill`.
    """

    features: Tensor
    tokens: Tensor

    def __init__(self, size: int, feature_dim: int, max_tokens: int = _MOST_TOKENS):
        super().__init__()
        self.register_buffer("features", torch.zeros(size, feature_dim))
        self.register_buffer("tokens", torch.full((size, max_tokens), _PADDING, dtype=torch.int32))

    def fill(self, features: Tensor, tokens: Sequence[Sequence[int]]) -> None:
        """Set the words.

        Args:
            features: [V, d] unit rows.
            tokens: Token ids of each word, at most L of them.

        Raises:
            ConfigError: Not V words, or a word of more than L tokens.
        """
        size, longest = self.tokens.shape
        if len(features) != size or len(tokens) != size:
            raise ConfigError(f"{len(features)} words given for a dictionary of {size}")
        if max(len(word) for word in tokens) > longest:
            raise ConfigError(f"a word has more than {longest} tokens", where="WordDictionary")
        self.features.copy_(features)
        self.tokens.fill_(_PADDING)
        for row, word in enumerate(tokens):
            self.tokens[row, : len(word)] = torch.tensor(word, dtype=torch.int32)

    @torch.no_grad()
    def pursue(self, frames: Tensor, count: int) -> Tensor:
        """Return the words of each frame by orthogonal matching pursuit, [n, count], best first.

        Each step takes the word nearest to what is left of the feature, then fits all words
        taken so far by least squares.

        Args:
            frames: [n, d] features; a zero row gets arbitrary words.
            count: Words per frame.
        """
        dictionary = self.features.to(torch.float32)
        frames = frames.to(torch.float32)
        chosen = torch.zeros(len(frames), 0, dtype=torch.long, device=frames.device)
        rest = frames
        for _ in range(count):
            scores = rest @ dictionary.T
            scores.scatter_(1, chosen, -torch.inf)
            chosen = torch.cat([chosen, scores.argmax(1, keepdim=True)], 1)
            basis = dictionary[chosen]  # [n, k, d]
            gram = basis @ basis.transpose(1, 2)
            # Two words may have the same feature: a little ridge keeps the system solvable.
            gram = gram + 1e-4 * torch.eye(chosen.shape[1], device=frames.device)
            weights = torch.linalg.solve(gram, basis @ frames[..., None])
            rest = frames - (basis.transpose(1, 2) @ weights)[..., 0]
        return chosen

    def embed(self, words: Tensor, embedding: Tensor) -> Tensor:
        """Return the mean token embedding of each word, [..., D].

        Args:
            words: [...] rows of the dictionary.
            embedding: [vocabulary, D] of the LLM.
        """
        tokens = self.tokens[words]
        real = (tokens != _PADDING)[..., None]
        rows = embedding[tokens.clamp(min=0).long()]
        return (rows * real).sum(-2) / real.sum(-2).clamp(min=1)
