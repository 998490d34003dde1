"""What the task files of `topa benchmarks lmms` show, ask and count, for lmms-eval.

A document is a line of the task's own JSONL file, in the words of `VideoQuestion` or
`VideoCaption`, the video as a path. Nothing is guessed: a video that is not there is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from topa.data.asked import question_text
from topa.data.questions import VideoQuestion
from topa.data.templates import DESCRIBE_PREFIX, DESCRIBE_QUESTION, ask_line
from topa.eval.caption_metrics import score_captions


def to_visual(doc: dict[str, Any]) -> list[Any]:
    """Return the path, and the bounds in seconds where only a part is asked about."""
    bounds = [doc.get("start"), doc.get("end")]
    return [doc["path"]] if bounds == [None, None] else [doc["path"], *bounds]


def to_question(doc: dict[str, Any], lmms_eval_specific_kwargs: Any = None) -> str:
    """Return the open prompt after the video, with the dialogue if the document has it."""
    return f"{ask_line(question_text(VideoQuestion.model_validate(doc)))}\nAnswer:"


def to_options(doc: dict[str, Any]) -> list[str]:
    """Return the options."""
    return list(doc["options"])


def to_answer(doc: dict[str, Any]) -> int:
    """Return the index of the right option."""
    return int(doc["answer"])


def rate_choice(doc: dict[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, float]:
    """Return whether the option of the smallest loss is right, as egoschema_mcppl does."""
    values = [float(value) for value, _ in results]
    return {"topa_accuracy": float(values.index(min(values)) == doc["answer"])}


def to_description(doc: dict[str, Any], lmms_eval_specific_kwargs: Any = None) -> str:
    """Return the prompt of the paper's notebook."""
    return f"Question: {DESCRIBE_QUESTION}\nAnswer: {DESCRIBE_PREFIX}"


def to_reference(doc: dict[str, Any]) -> str:
    """Return the first reference, for logs; all of them are scored against."""
    return str(doc["captions"][0])


def gather_caption(doc: dict[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """Return what the metrics of the whole set need of one video."""
    row = [doc["video"], results[0].split("\n")[0].strip(), list(doc["captions"])]
    return {"topa_CIDEr": row, "topa_BLEU_4": row, "topa_ROUGE_L": row}


def _score(rows: Sequence[Sequence[Any]], metric: str) -> float:
    captions = {video: caption for video, caption, _ in rows}
    references = {video: texts for video, _, texts in rows}
    return 100 * float(score_captions(captions, references, meteor=False)[metric]["score"])


def cider(rows: Sequence[Sequence[Any]]) -> float:
    """Return CIDEr times 100."""
    return _score(rows, "CIDEr")


def bleu_4(rows: Sequence[Sequence[Any]]) -> float:
    """Return BLEU-4 times 100."""
    return _score(rows, "BLEU-4")


def rouge_l(rows: Sequence[Sequence[Any]]) -> float:
    """Return ROUGE-L times 100."""
    return _score(rows, "ROUGE-L")
