"""Writing without a server: batch files in OpenAI's format, and vLLM in this process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from topa.errors import ConfigError, DataError
from topa.runs import read_jsonl
from topa.tideo.backends import BusyFault, Call, Completion, read_completion, response_format
from topa.tideo.composition import Recipe, replay
from topa.tideo.drafts import DraftError
from topa.tideo.journal import (
    FOLDER,
    MAIN,
    Journal,
    JournalState,
    answer_row,
    done_row,
    failed_row,
    read_state,
    sent_row,
    usage_of,
)
from topa.tideo.pace import Pace, length_of
from topa.tideo.results import write_lines
from topa.tideo.seeds import Seed

URL = "/v1/chat/completions"


@dataclass
class ImportReport:
    """What an import of batch results did.

    Attributes:
        done: Seeds that became Tideos.
        waiting: Seeds whose reply asks for another step; export again for them.
        failed: Seeds that came to nothing.
        repeated: Lines whose reply was known already; nothing is counted twice.
        unknown: `custom_id`s that belong to no seed of the run.
        errors: Lines that hold an error instead of a reply, by `custom_id`; export again.
    """

    done: int = 0
    waiting: int = 0
    failed: int = 0
    repeated: int = 0
    unknown: list[str] = field(default_factory=list)
    errors: dict[str, str] = field(default_factory=dict)


def export_requests(
    seeds: Sequence[Seed],
    recipe: Recipe,
    run: str | Path,
    path: str | Path,
    *,
    extra: dict[str, Any] | None = None,
) -> int:
    """Write the next request of every unfinished seed as OpenAI batch JSONL; return their number.

    The file suits OpenAI's batch endpoint and `vllm run-batch`.

    Args:
        seeds: Those of the run.
        recipe: What is asked for.
        run: Folder of the run; replies that it holds are used.
        path: File to write.
        extra: Further fields of every body.
    """
    state = read_state(run)
    return write_lines(path, _request_lines(seeds, recipe, state, extra or {}))


def _request_lines(
    seeds: Sequence[Seed], recipe: Recipe, state: JournalState, extra: dict[str, Any]
) -> Iterator[str]:
    for seed in seeds:
        key = recipe.key_of(seed)
        if key in state.done or key in state.failed:
            continue
        call = replay(recipe.compose(seed, key), state.replies.get(key, []))
        body: dict[str, Any] = {
            "model": recipe.model,
            "messages": call.messages,
            "max_tokens": call.max_tokens,
            "temperature": call.temperature,
        }
        if chosen := response_format(call.schema, "json_schema"):
            body["response_format"] = chosen
        line = {"custom_id": call.name, "method": "POST", "url": URL, "body": {**body, **extra}}
        yield json.dumps(line, ensure_ascii=False)


def import_results(
    seeds: Sequence[Seed],
    recipe: Recipe,
    run: str | Path,
    path: str | Path,
    pace: Pace | None = None,
) -> ImportReport:
    """Take the results of a batch file into the journal of a run.

    Args:
        seeds: Those of the export.
        recipe: That of the export.
        run: Folder of the run.
        path: Results in OpenAI's format: custom_id, response (status_code, body), error.
        pace: For its prices.

    Raises:
        DataError: The file is missing, or a line is no result.
        ConfigError: Another run is writing to the journal.
    """
    journal = Journal(Path(run) / FOLDER / MAIN)
    try:
        importer = _Importer(seeds, recipe, read_state(run), journal, pace or Pace())
        for number, row in read_jsonl(path):
            importer.take(row, f"{path}, line {number}")
        return importer.report
    finally:
        journal.close()


class _Importer:
    def __init__(
        self,
        seeds: Sequence[Seed],
        recipe: Recipe,
        state: JournalState,
        journal: Journal,
        pace: Pace,
    ):
        self.recipe, self.state, self.journal, self.pace = recipe, state, journal, pace
        self.seeds = {recipe.key_of(seed): seed for seed in seeds}
        self.report = ImportReport()

    def take(self, row: dict[str, Any], where: str) -> None:
        """Take one line of results."""
        name, report = row.get("custom_id"), self.report
        if not isinstance(name, str):
            raise DataError("no custom_id", where=where, mend="Give a batch's results file.")
        key, _, step = name.rpartition("-")
        if key not in self.seeds or not step.isdigit():
            report.unknown.append(name)
            return
        replies = self.state.replies.get(key, [])
        if key in self.state.done or key in self.state.failed or int(step) < len(replies):
            report.repeated += 1
            return
        response = row.get("response") or {}
        if not isinstance(response, dict):
            raise DataError("the response is no object", where=where)
        if row.get("error") or response.get("status_code") != 200:
            problem = row.get("error") or response.get("body") or "no response"
            report.errors[name] = json.dumps(problem, ensure_ascii=False)[:300]
            return
        try:
            reply = read_completion(response.get("body") or {})
        except BusyFault as error:
            report.errors[name] = str(error)
            return
        self._advance(key, int(step), replies, reply)

    def _advance(self, key: str, step: int, replies: list[Completion], reply: Completion) -> None:
        """Go one step on with a seed, and write down where that leads."""
        seed = self.seeds[key]
        composition = self.recipe.compose(seed, key)
        call = replay(composition, replies)
        prompt, completion, estimated = usage_of(reply, length_of(call))
        cost = self.pace.cost(prompt, completion)
        usage = {"in": prompt, "out": completion, "usd": cost, "most": cost}
        if estimated:
            usage["estimated"] = True
        sent = sent_row(key, step, cost)
        try:
            composition.send(reply)
        except StopIteration as finished:
            result, notes = finished.value
            self.journal.append(sent, done_row(key, result, notes, usage))
            self.state.done.add(key)
            self.report.done += 1
        except DraftError as error:
            self.journal.append(sent, failed_row(key, seed, str(error), reply.text, usage))
            self.state.failed[key] = str(error)
            self.report.failed += 1
        else:
            self.journal.append(sent, answer_row(key, step, reply, usage))
            self.state.replies.setdefault(key, []).append(reply)
            self.report.waiting += 1


class VllmBackend:
    """vLLM inside this process, where it is installed: calls are gathered and answered together.

    Args:
        model: Folder or hub id.
        batch: Most calls at once.
        options: Of `vllm.LLM`, e.g. tensor_parallel_size.

    Raises:
        ConfigError: vLLM is not installed.
    """

    def __init__(self, model: str, *, batch: int = 512, options: dict[str, Any] | None = None):
        try:
            from vllm import LLM, SamplingParams
            from vllm.sampling_params import StructuredOutputsParams
        except ImportError:
            raise ConfigError(
                "vLLM is not installed",
                where=f"vllm:{model}",
                mend="Run `pip install vllm` on a machine with a GPU, or serve the model and give"
                " --base-url.",
            ) from None
        self.model = model
        self.parallel: int | None = batch
        self._sampling, self._structured = SamplingParams, StructuredOutputsParams
        self._llm = LLM(model=model, **(options or {}))
        self._waiting: list[tuple[Call, asyncio.Future[Completion]]] = []
        self._task: asyncio.Task[None] | None = None

    async def complete(self, call: Call) -> Completion:
        """Answer a call together with those that came meanwhile."""
        future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self._waiting.append((call, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._answer())
        return await future

    async def _answer(self) -> None:
        await asyncio.sleep(0.01)  # lets the other workers hand in theirs
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                replies = await asyncio.to_thread(self._chat, [call for call, _ in batch])
            except (RuntimeError, ValueError) as error:
                for _, future in batch:
                    future.set_exception(BusyFault("vllm", str(error)[:300]))
                continue
            for (_, future), reply in zip(batch, replies, strict=True):
                if not future.done():
                    future.set_result(reply)

    def _chat(self, calls: list[Call]) -> list[Completion]:
        params = [
            self._sampling(
                max_tokens=call.max_tokens,
                temperature=call.temperature,
                seed=call.draw,
                structured_outputs=(
                    None if call.schema is None else self._structured(json=call.schema)
                ),
            )
            for call in calls
        ]
        outputs = self._llm.chat([call.messages for call in calls], params, use_tqdm=False)
        return [
            Completion(
                output.outputs[0].text,
                len(output.prompt_token_ids or ()),
                len(output.outputs[0].token_ids),
                output.outputs[0].finish_reason or "stop",
            )
            for output in outputs
        ]

    async def close(self) -> None:
        """Nothing to close: vLLM goes with the process."""
