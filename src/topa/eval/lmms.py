"""The model of lmms-eval: `lmms-eval --model topa --tasks egoschema_subset_mcppl ...`.

lmms-eval finds it by the entry point `lmms_eval.models` of this package. Task files for STAR, TVQA
and MSR-VTT captioning, which lmms-eval has not, are written by `topa benchmarks lmms`.

What lmms-eval calls a log-likelihood is, in the tasks that use it (egoschema_mcppl,
egoschema_subset_mcppl, and ours), the mean loss per token: they take the option with the *smallest*
value, although the documentation of the interface says log-probability.
`loglikelihood="loss"` (the default) keeps to what the tasks do, `loglikelihood="logprob"` to what
the documentation says.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from topa.answer import Topa
from topa.data.templates import CHOICE_INSTRUCTION, OPEN_INSTRUCTION, Prompt, clean_question
from topa.errors import ConfigError, VideoError
from topa.features.video import Clip, read_clip
from topa.model.scoring import score_options

if TYPE_CHECKING:
    from lmms_eval.api.instance import Instance

if importlib.util.find_spec("lmms_eval") is None:
    raise ConfigError(
        "lmms-eval is not installed",
        where="topa.eval.lmms",
        mend="See docs/benchmarks.md: it wants an environment of its own.",
    )

from lmms_eval.api.instance import GenerationResult
from lmms_eval.api.model import lmms  # after the check, which says more than an ImportError
from lmms_eval.models.registry_v2 import ModelManifest

DESCRIBE_TOKENS = 40


def manifest() -> ModelManifest:
    """Return what lmms-eval needs to find the model."""
    return ModelManifest(model_id="topa", simple_class_path="topa.eval.lmms.TopaLmms")


class TopaLmms(lmms):
    """TOPA behind the interface of lmms-eval.

    Args:
        checkpoint: "embedded" or a folder of `topa align`.
        pretrained: The same under the name that other models have.
        llm: Where to find the LLM, if not where the checkpoint says.
        device: Where the LLM runs; a GPU if there is one.
        batch_size: Prompts per forward pass.
        num_frames: Frames to sample from each video; the model's T by default.
        use_memory: Project image features through the memory.
        loglikelihood: "loss" or "logprob", see the module.

    Raises:
        ConfigError: Unknown settings.
    """

    is_simple = True

    def __init__(
        self,
        checkpoint: str = "embedded",
        pretrained: str | None = None,
        llm: str | None = None,
        device: str | None = None,
        batch_size: int | str = 8,
        num_frames: int | None = None,
        use_memory: bool = True,
        loglikelihood: str = "loss",
        max_batch_size: int | None = None,
    ):
        super().__init__()
        if loglikelihood not in ("loss", "logprob"):
            raise ConfigError(
                f"loglikelihood is {loglikelihood!r}", where="topa", mend="Use loss or logprob."
            )
        available = torch.cuda.is_available()
        if device is not None and device.startswith("cuda") and not available:
            device = None  # lmms-eval asks for cuda:0 wherever it runs
        self.topa = Topa.from_pretrained(pretrained or checkpoint, llm=llm, device=device)
        self.batch_size = 8 if batch_size == "auto" else int(batch_size)
        self.num_frames = num_frames
        self.use_memory = use_memory
        self.sign = -1.0 if loglikelihood == "loss" else 1.0

    def loglikelihood(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """Return (mean loss per token of the continuation, False) of each request.

        The pair is wrapped: lmms-eval 0.7.3 makes a string of a plain one before any task sees
        it, and hands on what lies in a `GenerationResult` as it is. The options of one question
        share one pass: prompts are packed by document and context. Whether greedy decoding
        would give the continuation is not computed; no task asks.
        """
        groups: dict[tuple[Any, ...], list[int]] = {}
        for i, request in enumerate(requests):
            context, _, _, doc_id, task, split = request.args
            groups.setdefault((task, split, doc_id, context), []).append(i)
        scores: list[float] = [0.0] * len(requests)
        prompts: list[Prompt] = []
        features: list[Tensor] = []
        for (task, split, doc_id, context), members in groups.items():
            texts = [requests[i].args[1] for i in members]
            prompts.append(self._likelihood_prompt(context, texts))
            features.append(self._watch(requests[members[0]].args[2], task, split, doc_id))
        found = score_options(self.topa.model, prompts, features, batch_size=self.batch_size)
        for members, rows in zip(groups.values(), found, strict=True):
            for i, value in zip(members, rows[0].tolist(), strict=True):
                scores[i] = self.sign * value
        return [GenerationResult((score, False)) for score in scores]

    def _likelihood_prompt(self, context: str, texts: Sequence[str]) -> Prompt:
        """Return the open prompt with every continuation as a branch, one or more."""
        builder = self.topa.builder
        prompt = builder.root(_instruction(context))
        parent = builder.add(prompt, _question(context), 0)
        branches = [
            builder.add(prompt, f" {text.strip()}", parent, is_label=True) for text in texts
        ]
        prompt.options.append(branches)
        prompt.answers.append(-1)
        return prompt

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Return greedy continuations, cut at the request's `until` strings."""
        texts: list[str] = []
        for start in range(0, len(requests), self.batch_size):
            batch = requests[start : start + self.batch_size]
            prompts, features = [], []
            for request in batch:
                context, _, to_visual, doc_id, task, split = request.args
                prompt = self.topa.builder.root(_instruction(context))
                self.topa.builder.add(prompt, _question(context), 0)
                prompts.append(prompt)
                features.append(self._watch(to_visual, task, split, doc_id))
            settings = [request.args[1] or {} for request in batch]
            longest = max(int(s.get("max_new_tokens", DESCRIBE_TOKENS)) for s in settings)
            for text, setting in zip(
                self.topa.generate(prompts, features, longest), settings, strict=True
            ):
                texts.append(_cut(text, setting.get("until")))
        return texts

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Refuse: this model answers once.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError("tasks of several rounds are not supported", where="topa")

    def _watch(self, to_visual: Any, task: str, split: str, doc_id: int) -> Tensor:
        """Return the projected features [n, d] of what a task shows.

        A task gives a path, or (path, start, end) in seconds, or the frames themselves. A video
        that cannot be read ends the run, as it does for other models of lmms-eval: the harness
        has no way to count it as wrong.

        Raises:
            VideoError: There is no video, or it cannot be read.
        """
        visuals = to_visual(self.task_dict[task][split][doc_id])
        if not visuals:
            raise VideoError("the task shows nothing", where=f"{task}, document {doc_id}")
        first = visuals[0]
        count = self.num_frames or self.topa.model.config.num_frames
        if isinstance(first, str | Path):
            clip = self._read(Path(first), count, *visuals[1:3])
        else:
            images = [visuals[j * len(visuals) // count] for j in range(min(count, len(visuals)))]
            clip = Clip(f"{task}, document {doc_id}", [], [i.convert("RGB") for i in images], None)
        return self.topa.encode(clip, use_memory=self.use_memory)

    def _read(
        self, path: Path, count: int, start: float | None = None, end: float | None = None
    ) -> Clip:
        if start is None and end is None and not path.is_dir():
            return self.topa.watch(path, num_frames=count)
        return read_clip(path, num_frames=count, start=start, end=end, frame_rate=3.0)


def _instruction(context: str) -> str:
    """Return the instruction of the training prompt that a context of a task fits best."""
    listed = "\nA. " in context or "\n(A) " in context
    return CHOICE_INSTRUCTION if listed else OPEN_INSTRUCTION


def _question(context: str) -> str:
    """Return the part of the prompt after the video, from the text of a task.

    Lines that name options stay as the task wrote them; a context without any is a question.
    """
    if "\nAnswer:" in context:  # the whole prompt, as our task files write it
        return f"\n{context.strip()}"
    head, line, options = context.strip().partition("\n")
    if not line:
        return f"\nQuestion: {clean_question(head)}\nAnswer:"
    return f"\nQuestion: {clean_question(head)}\nChoices: \n{options}\nAnswer:"


def _cut(text: str, until: Any) -> str:
    stops = [until] if isinstance(until, str) else list(until or ())
    ends = [text.index(stop) for stop in stops if stop and stop in text]
    return text[: min(ends)].strip() if ends else text.strip()
