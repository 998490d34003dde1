"""A run's Tideos as a dataset folder that Hugging Face's `datasets` reads, with its card."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import yaml

from topa.errors import ConfigError, DataError
from topa.runs import write_json
from topa.tideo.quality import Summary
from topa.tideo.results import write_lines
from topa.tideo.schema import Tideo

Format = Literal["parquet", "jsonl"]
SHARD = 10_000


def pack_dataset(
    tideos: Iterable[Tideo],
    out: str | Path,
    *,
    form: Format = "parquet",
    shard: int = SHARD,
    about: dict[str, Any] | None = None,
    licence: str = "other",
) -> Summary:
    """Write shards, a dataset card and summary.json into a new folder, all of it or nothing.

    Args:
        tideos: Read once, shard by shard.
        out: Folder to make.
        form: Of the shards.
        shard: Tideos in one.
        about: How they were made: model, prompt_version, ...
        licence: Identifier for the card; what a model's terms allow is for its user to know.

    Raises:
        ConfigError: The folder holds something, or pyarrow is missing.
        DataError: There are no Tideos.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError("the folder is not empty", where=out, mend="Choose another --to.")
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-"))
    try:
        summary = Summary()
        shards = _write_shards(tideos, work / "data", form, shard, summary)
        if not summary.tideos:
            raise DataError("no Tideos to pack", where=out)
        for number, path in enumerate(shards):
            name = f"train-{number:05d}-of-{len(shards):05d}.{form}"
            path.rename(path.with_name(name))
        found = {"tideos": summary.tideos, **summary.to_dict(), "about": about or {}}
        write_json(work / "summary.json", found)
        (work / "README.md").write_text(_card(summary, form, about or {}, licence), "utf-8")
        work.chmod(0o755)
        if out.exists():
            out.rmdir()
        os.replace(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return summary


def _write_shards(
    tideos: Iterable[Tideo], folder: Path, form: Format, size: int, summary: Summary
) -> list[Path]:
    folder.mkdir()
    rest = iter(tideos)
    paths: list[Path] = []
    while rows := list(islice(rest, size)):
        for tideo in rows:
            summary.add(tideo)
        path = folder / f"part-{len(paths):05d}.{form}"
        if form == "jsonl":
            write_lines(path, (tideo.model_dump_json(exclude_none=True) for tideo in rows))
        else:
            _write_parquet(path, rows)
        paths.append(path)
    return paths


def _write_parquet(path: Path, tideos: list[Tideo]) -> None:
    arrow, parquet = _import_arrow(path)
    text, texts = arrow.string(), arrow.list_(arrow.string())
    schema = arrow.schema(
        {
            "id": text,
            "source": text,
            "seed": text,
            "frames": arrow.list_(arrow.struct({"caption": text, "objects": texts})),
            "caption": text,
            "qas": arrow.list_(
                arrow.struct(
                    {
                        "question": text,
                        "options": texts,
                        "answer": arrow.int64(),
                        "open_answer": text,
                        "kind": text,
                    }
                )
            ),
        }
    )
    table = arrow.Table.from_pylist([tideo.model_dump() for tideo in tideos], schema=schema)
    parquet.write_table(table, path, compression="zstd")


def _import_arrow(path: str | Path) -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ConfigError(
            "Parquet needs pyarrow, which is not installed",
            where=path,
            mend="Run `pip install -e '.[generate]'`, or use --format jsonl.",
        ) from None
    return pyarrow, parquet


def read_parquet(path: str | Path) -> Iterator[dict[str, Any]]:
    """Yield the Tideos of a Parquet file as plain values; fields that are empty are None.

    Raises:
        ConfigError: pyarrow is missing.
        DataError: It is no Parquet file.
    """
    arrow, parquet = _import_arrow(path)
    try:
        file = parquet.ParquetFile(path)
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"not a Parquet file ({error})", where=path) from None
    for batch in file.iter_batches(batch_size=1000):
        yield from batch.to_pylist()


_CARD = """\
# {name}

{tideos:,} textual videos (Tideos): {frames:,} frames and {questions:,} questions, written by a
language model from short seeds, for teaching video understanding with text alone
([TOPA, NeurIPS 2024](https://arxiv.org/abs/2405.13911)).

```python
from datasets import load_dataset
tideos = load_dataset("{name}", split="train")
```

or `topa align data.tideos={name}`.

| field | meaning |
|---|---|
| id, source, seed | unique id; style of the seed; the text it grew from |
| frames | 5 to 15 in time order: `caption`, and 1 to 5 `objects` |
| caption | description of the whole |
| qas | 3 to 6: `question`, `options`, `answer` (index from 0), `open_answer`, `kind` |

## How it was made

{about}

## What is in it

{counts}

## Known limits

Everything here was invented by a language model. Nothing was filmed, and nothing was checked
against the world: facts may be wrong, and the model's habits and biases are in it. The counts
above tell what can be guessed from place and length of options alone;
`topa textvid audit` tells what a model guesses from the question.
"""


def _card(summary: Summary, form: Format, about: dict[str, Any], licence: str) -> str:
    found = summary.to_dict()
    size = next(
        (
            name
            for most, name in ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"))
            if summary.tideos < most
        ),
        "100K<n<1M",
    )
    head = {
        "license": licence,
        "language": ["en"],
        "task_categories": ["visual-question-answering", "text-generation"],
        "tags": ["synthetic", "textual-video", "video-understanding"],
        "size_categories": [size],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": f"data/train-*.{form}"}],
            }
        ],
    }
    made = "\n".join(f"- {name}: {value}" for name, value in about.items()) or "Not recorded."
    counts = [
        *(f"- Tideos from {name}: {count:,}" for name, count in found["sources"].items()),
        *(f"- questions, {name}: {count:,}" for name, count in found["kinds"].items()),
        f"- right option by place: {found['answer_positions']}",
        f"- right option alone the longest: {found['right_is_longest']:.1%}, alone the shortest:"
        f" {found['right_is_shortest']:.1%} (chance {found['chance']:.1%})",
        *(f"- {rule}: {count:,}" for rule, count in found["findings"].items()),
    ]
    body = _CARD.format(
        name=about.get("name", "textvid"),
        tideos=summary.tideos,
        frames=summary.frames,
        questions=summary.questions,
        about=made,
        counts="\n".join(counts),
    )
    return f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n{body}"
