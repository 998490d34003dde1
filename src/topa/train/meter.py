"""How fast a training goes: tokens, samples, waiting for data, and the share of peak FLOPs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from topa.model.topa import TopaForConditionalGeneration

# Of the square matrices whose product gives the peak: large enough to fill the device.
_SIZE_ON_CPU, _SIZE_ON_GPU = 1024, 8192


class StepCost:
    """Floating-point operations of a training step, on tokens that are not padding.

    A matrix product costs two operations per weight and token forward, and two more backward
    for the gradient of its input; the frozen weights themselves need none. Trained matrices of
    the LLM (LoRA) need another two. Attention is counted over half of each sequence.

    Args:
        model: The model.
    """

    def __init__(self, model: TopaForConditionalGeneration):
        config = model.language_config
        decoder = model.language_model.get_decoder()
        matrices = {
            name: parameter
            for name, parameter in decoder.named_parameters()
            if parameter.ndim == 2 and "embed" not in name and "topa_adapter" not in name
        }
        frozen = sum(p.numel() for p in matrices.values() if not p.requires_grad)
        trained = sum(p.numel() for p in matrices.values() if p.requires_grad)
        width = getattr(config, "head_dim", None) or (
            config.hidden_size // config.num_attention_heads
        )
        attended = config.num_hidden_layers * config.num_attention_heads * width
        prompts = model.config.adapter_length if model.config.variant == "adapter" else 0
        # Forward, and backward to the projector's own weights: its input needs no gradient.
        self.per_sample = 4 * model.visual_proj.weight.numel() * model.config.num_frames
        # Scores and mixtures, forward and twice backward: 2 products, 2 operations, 3 times.
        self.per_token = 4 * frozen + 6 * trained + 12 * attended * prompts
        self.per_pair = 12 * attended / 2
        self.per_target = 4 * config.vocab_size * config.hidden_size

    def of(self, samples: float, tokens: float, pairs: float, targets: float) -> float:
        """Return the operations of a step.

        Args:
            samples: Prompts with a video.
            tokens: Tokens that are not padding.
            pairs: Sum over prompts of the square of their length.
            targets: Label tokens.
        """
        return (
            self.per_sample * samples
            + self.per_token * tokens
            + self.per_pair * pairs
            + self.per_target * targets
        )


def measure_peak(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> float:
    """Return the operations per second of a product of two large matrices, the best of a few.

    On a CPU the processor's time is taken, shared by the threads: other work on the machine
    would make the peak of the clock on the wall lower than it is.
    """
    on_gpu = device.type == "cuda"
    size = _SIZE_ON_GPU if on_gpu else _SIZE_ON_CPU
    first = torch.ones(size, size, device=device, dtype=dtype)
    clock, shares = (time.perf_counter, 1) if on_gpu else (time.process_time, _threads())
    best = float("inf")
    for _ in range(repeats):
        _wait_for(device)
        start = clock()
        first @ first
        _wait_for(device)
        best = min(best, (clock() - start) / shares)
    return 2 * size**3 / max(best, 1e-9)


def _threads() -> int:
    return torch.get_num_threads()


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Meter:
    """Counts what steps process, and tells the speed since the last time it was asked.

    Counts stay on the device until then: a step waits for nothing. Time spent in `pause` is
    left out (validation, saving).

    Args:
        cost: Operations of a step.
        peak: Operations per second of the device.
        device: Where the batches are.
    """

    def __init__(self, cost: StepCost, peak: float, device: torch.device):
        self.cost, self.peak, self.device = cost, peak, device
        self.reset()

    def reset(self) -> None:
        """Start to count anew."""
        self.start = time.perf_counter()
        self.paused = self.waited = 0.0
        # Samples, tokens, tokens with padding, squared lengths, label tokens, tokens computed.
        self.counts = torch.zeros(6, dtype=torch.float64, device=self.device)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave the time of a block out."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.paused += time.perf_counter() - start

    @contextmanager
    def wait(self) -> Iterator[None]:
        """Count the time of a block as waiting for data."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.waited += time.perf_counter() - start

    def count(self, inputs: dict[str, Tensor]) -> None:
        """Add one micro-batch."""
        lengths = (inputs["segment_ids"] >= 0).sum(1).double()
        sizes = (len(lengths), inputs["segment_ids"].numel(), len(inputs["target_ids"]))
        samples, padded, targets = (self.counts.new_full((), size) for size in sizes)
        pairs, computed = lengths.square().sum(), lengths.sum()
        if "tokens" in inputs:  # what samples have in common is computed once
            computed = computed.new_full((), len(inputs["tokens"]))
        self.counts += torch.stack([samples, lengths.sum(), padded, pairs, targets, computed])

    def read(self, add_up: Callable[[Tensor], Tensor], processes: int) -> dict[str, float]:
        """Return the figures of all processes since the last reading, and start anew.

        Args:
            add_up: Sums a tensor over the processes.
            processes: How many there are.

        Returns:
            `samples_per_second`, `tokens_per_second` (real), `padded_tokens_per_second`,
            `data_wait` (share of the time) and `mfu` (share of the measured peak, for
            tokens that are computed: no padding, common beginnings once).
        """
        samples, tokens, padded, pairs, targets, computed = add_up(self.counts).tolist()
        seconds = max(time.perf_counter() - self.start - self.paused, 1e-9)
        operations = self.cost.of(samples, computed, pairs, targets)
        figures = {
            "samples_per_second": samples / seconds,
            "tokens_per_second": tokens / seconds,
            "padded_tokens_per_second": padded / seconds,
            "data_wait": self.waited / seconds,
            "mfu": operations / seconds / self.peak / processes,
        }
        self.reset()
        return {name: float(f"{value:.4g}") for name, value in figures.items()}
