"""Contests of the model: choosing, describing and learning, against the paper's own way."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from topa.bench.paper import LENGTH, PaperModel, option_rows
from topa.bench.timing import Contest
from topa.data.batches import LengthBatches
from topa.data.collate import Batch, collate_for_generation
from topa.data.dataset import TideoDataset
from topa.data.templates import PromptBuilder
from topa.features.store import TideoFeatures, mean_rows, sample_rows
from topa.model.config import TopaConfig
from topa.model.language import load_language
from topa.model.methods import score_selection
from topa.model.topa import TopaForConditionalGeneration
from topa.tideo.schema import Tideo
from topa.tideo.textvid import load_tideos
from topa.train.loss import compute_losses
from topa.train.meter import StepCost, measure_peak
from topa.train.trainer import SampleCollator

_DIM = 768  # of CLIP ViT-L/14, the paper's encoder
_TASKS = {"choice": 0.5, "caption": 0.25, "open": 0.25}


@dataclass(frozen=True)
class Bench:
    """An LLM with an untrained adapter, and Tideos with random features.

    Speed does not depend on what is learned. Trainables are drawn so that every one of them
    matters to the results that are compared: gates are not left at zero.
    """

    model: TopaForConditionalGeneration
    builder: PromptBuilder
    tideos: list[Tideo]
    features: TideoFeatures
    llm: str

    @classmethod
    def load(cls, llm: str = "embedded", count: int = 64) -> Bench:
        """Load an LLM, put the paper's adapter on it, and draw features of Tideos."""
        language = load_language(llm)
        generator = torch.Generator().manual_seed(0)
        config = TopaConfig(text_config=language.model.config, feature_dim=_DIM, variant="adapter")
        model = TopaForConditionalGeneration(config, language.model)
        with torch.no_grad():
            for name, parameter in model.trainable_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                scale = 1.0 if name.endswith("prompt") else 0.1
                parameter.copy_(noise * scale - (3.5 if name.endswith("video_bias") else 0.0))
        # Ten frames each: none is padding, so that rows of both ways see the same.
        tideos = [tideo for tideo in load_tideos("textvid") if len(tideo.frames) >= 10][:count]
        features = draw_features(tideos, generator)
        return cls(model.eval(), PromptBuilder(language.tokenizer, 10), tideos, features, llm)

    def shown(self, count: int) -> list[Tensor]:
        """Return [10, d] features of the first Tideos."""
        return [
            self.features.of(i)[sample_rows(len(self.features.of(i)), 10)] for i in range(count)
        ]


def draw_features(tideos: Sequence[Tideo], generator: torch.Generator) -> TideoFeatures:
    """Return random unit features of every text of Tideos."""
    sizes = [len(frame.texts) for tideo in tideos for frame in tideo.frames]
    texts = F.normalize(torch.randn(sum(sizes), _DIM, generator=generator), dim=-1)
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    frames = torch.tensor([0, *(len(tideo.frames) for tideo in tideos)]).cumsum(0)
    return TideoFeatures(texts, offsets, frames, mean_rows(texts, offsets), "random")


def contest_choice(bench: Bench, count: int = 4) -> Contest:
    """Questions of five options answered by letter."""
    paper = PaperModel(bench.model)
    asked: list[tuple[int, Any]] = []
    for index, tideo in enumerate(bench.tideos):
        item = next(
            (
                item
                for item in tideo.qas
                if len(item.options) == 5
                and len(bench.builder.choice(item.question, item.options)) <= LENGTH
            ),
            None,
        )
        if item is not None:
            asked.append((index, item))
        if len(asked) == count:
            break
    shown = bench.shown(len(bench.tideos))
    choices = [[(item.question, item.options)] for _, item in asked]
    features = [shown[index] for index, _ in asked]

    def ours() -> Tensor:
        found = score_selection(bench.model, bench.builder, choices, features)
        return torch.stack([scores for (scores,) in found])

    @torch.inference_mode()
    def reference() -> Tensor:
        rows = []
        for (question,), video in zip(choices, features, strict=True):
            prompts = option_rows(bench.builder.choice(*question))
            sums, lengths = paper.nll(prompts, video.expand(len(prompts), -1, -1))
            rows.append(-sums / lengths)
        return torch.stack(rows)

    return Contest(
        "choice",
        "questions/s",
        len(asked),
        ours,
        reference,
        lambda a, b: torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3),
        f"{len(asked)} questions of 5 options by letter, {bench.llm} LLM; reference: 5 rows of"
        f" {LENGTH} a question",
        8.0,
    )


def contest_caption(bench: Bench, count: int = 4, tokens: int = 12) -> Contest:
    """Captions of several videos, greedily."""
    paper = PaperModel(bench.model)
    prompt = bench.builder.caption()
    features = bench.shown(count)

    @torch.inference_mode()
    def ours() -> list[list[int]]:
        inputs = collate_for_generation([prompt] * count, features, 10, 1)
        found = bench.model.generate(  # type: ignore[misc]
            **inputs,  # type: ignore[arg-type]
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        return found[:, inputs["input_ids"].shape[1] :].tolist()

    @torch.inference_mode()
    def reference() -> list[list[int]]:
        return [paper.continue_greedily(prompt, video, tokens) for video in features]

    def check(a: list[list[int]], b: list[list[int]]) -> None:
        assert a == b, f"captions differ: {a} and {b}"

    return Contest(
        "caption",
        "tokens/s",
        count * tokens,
        ours,
        reference,
        check,
        f"{count} captions of {tokens} tokens, {bench.llm} LLM; reference: one video at a time,"
        f" a whole row of {LENGTH} for every token",
        10.0,
    )


class Learning:
    """Forward and backward passes of pre-alignment, the reading of features included.

    Args:
        bench: LLM and Tideos.
        folder: Where the files of the paper's way are put.
        count: Tideos to take; those whose sample is too long are left out by both.
        batch_size: Samples per forward pass.
    """

    def __init__(self, bench: Bench, folder: Path, count: int, batch_size: int):
        self.bench, self.folder, self.batch_size = bench, folder, batch_size
        self.paper, self.collator = PaperModel(bench.model), SampleCollator(10)
        self.dataset = TideoDataset(
            bench.tideos[:count],
            bench.features,
            bench.builder,
            num_frames=10,
            tasks=_TASKS,
            max_length=LENGTH,
            overlong="drop",
        )
        self.batches = LengthBatches(self.dataset, batch_size, seed=0)
        self.kept = [index for batch in self.batches for index in batch if index >= 0]
        self.sizes = bench.features.text_offsets.diff().tolist()
        write_pickles(bench, self.kept, folder)

    def ours(self) -> tuple[float, Tensor]:
        """Return the summed loss and the gradients [weights], topa's way."""
        model, total = self.bench.model, 0.0
        model.zero_grad(set_to_none=True)
        for indices in self.batches:
            inputs = self.collator([self.dataset[i] for i in indices])
            blind = inputs.pop("blind")
            batch = Batch(**inputs)
            loss = compute_losses(model.target_log_probs(batch), batch, blind).nll
            loss.backward()
            total += float(loss.detach())
        return total, self._gradients()

    def reference(self) -> tuple[float, Tensor]:
        """Return the same, the paper's way."""
        total = 0.0
        self.bench.model.zero_grad(set_to_none=True)
        for first in range(0, len(self.kept), self.batch_size):
            part = self.kept[first : first + self.batch_size]
            videos = [
                read_pickle(self.folder / f"{index}.pkl", self.sizes, self.bench, index)
                for index in part
            ]
            prompts = [self.dataset[index].prompt for index in part]
            loss = self.paper.nll(prompts, torch.stack(videos))[0].sum()
            loss.backward()
            total += float(loss.detach())
        return total, self._gradients()

    def _gradients(self) -> Tensor:
        found = [p.grad for _, p in self.bench.model.trainable_parameters() if p.grad is not None]
        return torch.cat([gradient.flatten() for gradient in found])

    def details(self) -> dict[str, Any]:
        """Return tokens and operations of a pass, and our share of the peak (no padding)."""
        lengths = [self.dataset.length(index) for index in self.kept]
        # What samples of a batch have in common is computed once, and counted once.
        computed = sum(
            self.collator([self.dataset[i] for i in indices])["tokens"].numel()
            for indices in self.batches
        )
        targets = sum(
            len(segment.ids)
            for index in self.kept
            for segment in self.dataset[index].prompt.segments
            if segment.is_label
        )
        cost, count = StepCost(self.bench.model), len(lengths)
        operations = cost.of(count, computed, sum(n * n for n in lengths), targets)
        padded = cost.of(count, LENGTH * count, 2 * LENGTH**2 * count, LENGTH * count)
        peak = measure_peak(torch.device("cpu"), torch.float32)
        used = time.process_time()
        self.ours()
        # Of processor time, as the peak: both feel other work on the machine alike.
        seconds = (time.process_time() - used) / torch.get_num_threads()
        return {
            "tokens": sum(lengths),
            "computed_tokens": computed,
            "padded_tokens_of_reference": LENGTH * count,
            "operations_of_reference_per_ours": round(padded / operations, 2),
            "mfu": round(operations / seconds / peak, 3),
            "gflops_peak": round(peak / 1e9, 1),
        }


def contest_align(bench: Bench, folder: Path, count: int = 16, batch_size: int = 8) -> Contest:
    """Learning from samples of the paper's tasks."""
    learning = Learning(bench, folder, count, batch_size)

    def check(a: tuple[float, Tensor], b: tuple[float, Tensor]) -> None:
        assert abs(a[0] - b[0]) <= 1e-3 * abs(b[0]), f"losses differ: {a[0]} and {b[0]}"
        error = float((a[1] - b[1]).norm() / b[1].norm())
        assert error < 1e-3, f"gradients differ by {error:.2g}"

    return Contest(
        "align",
        "samples/s",
        len(learning.kept),
        learning.ours,
        learning.reference,
        check,
        f"{len(learning.kept)} samples in batches of {batch_size}, {bench.llm} LLM, forward and"
        f" backward; reference: rows of {LENGTH}, all logits, one pickle a sample",
        3.0,
        learning.details,
    )


def write_pickles(bench: Bench, indices: Sequence[int], folder: Path) -> None:
    """Write one file a Tideo: [texts, d], one row per text of all frames, as the paper's."""
    for index in indices:
        first, last = bench.features.frame_offsets[index : index + 2].tolist()
        rows = slice(*bench.features.text_offsets[[first, last]].tolist())
        torch.save(bench.features.texts[rows].clone(), folder / f"{index}.pkl")


def read_pickle(path: Path, sizes: Sequence[int], bench: Bench, index: int) -> Tensor:
    """Return [10, d]: read one file, normalise, average within frames, sample, normalise."""
    texts = F.normalize(torch.load(path, weights_only=True), dim=-1)
    first, last = bench.features.frame_offsets[index : index + 2].tolist()
    frames = torch.stack([rows.mean(0) for rows in texts.split(list(sizes[first:last]))])
    return F.normalize(frames[sample_rows(len(frames), 10)], dim=-1)


def scratch_folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder that goes when it is no longer needed."""
    return tempfile.TemporaryDirectory(prefix="topa-bench-")
