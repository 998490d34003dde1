"""Seeds: the short texts that Tideos grow from, out of files, WordNet and free topics."""

from __future__ import annotations

import csv
import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

from topa.errors import ConfigError, DataError
from topa.runs import read_jsonl
from topa.tideo.schema import Source

# Column names of the sets that the paper took its seeds from, and plain ones.
KNOWN_COLUMNS: dict[str, Source] = {
    "title": "howto",  # HowTo100M's video titles
    "task_name": "howto",
    "narration_text": "ego4d",
    "narration": "ego4d",
    "name": "webvid",  # WebVid keeps its captions in `name`
    "caption": "webvid",
    "description": "webvid",
    "topic": "topic",
    "text": "topic",
}
SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl", ".parquet")
_OPTIONS = ("column", "source", "weight", "pos", "min_count")


@dataclass(frozen=True, slots=True)
class Seed:
    """A short text, and the style of the source it comes from."""

    source: Source
    text: str


@dataclass(frozen=True)
class SeedSpec:
    """One source of seeds, as written on the command line.

    Attributes:
        name: `wordnet`, `topic:TEXT`, or a file.
        column: Of a table; None looks for a known name.
        source: The style; None means that of the column, or `topic`.
        weight: Share in a mix of several; None takes all of it.
        pos: Parts of speech of WordNet: n, v.
        min_count: WordNet synsets whose words occur at least so often in its tagged texts.
    """

    name: str
    column: str | None = None
    source: Source | None = None
    weight: float | None = None
    pos: str = "nv"
    min_count: int = 1


@dataclass
class SeedCount:
    """How many seeds one source gave.

    Attributes:
        read: Rows, lines or synsets looked at.
        empty: Rows without a text.
        duplicates: Texts that occurred before, in this source or an earlier one.
        kept: What remains to draw from.
    """

    read: int = 0
    empty: int = 0
    duplicates: int = 0
    kept: int = 0


@dataclass
class SeedList:
    """Seeds in the order in which they are used, and what each source gave."""

    seeds: list[Seed]
    counts: dict[str, SeedCount] = field(default_factory=dict)

    @property
    def sources(self) -> dict[str, int]:
        """Number of seeds by style."""
        return dict(sorted(Counter(seed.source for seed in self.seeds).items()))


def parse_spec(text: str) -> SeedSpec:
    """Read `NAME[,column=...][,source=...][,weight=...][,pos=nv][,min_count=...]`.

    Raises:
        ConfigError: An option is unknown or its value is no number.
    """
    name, options = text, {}
    while match := re.fullmatch(rf"(.+),({'|'.join(_OPTIONS)})=([^,]*)", name, re.DOTALL):
        name, option, value = match.groups()
        options[option] = value
    spec = SeedSpec(name)
    for option, value in options.items():
        try:
            converted = {"weight": float, "min_count": int}.get(option, str)(value)
        except ValueError:
            raise ConfigError(f"{option}={value!r} is not a number", where=text) from None
        spec = replace(spec, **{option: converted})
    if spec.source is not None and spec.source not in get_args(Source):
        raise ConfigError(
            f"unknown source {spec.source!r}", where=text, mend=f"Use {', '.join(get_args(Source))}"
        )
    if spec.weight is not None and not spec.weight > 0:
        raise ConfigError("a weight must be above 0", where=text)
    if not spec.pos or set(spec.pos) - set("nv"):
        raise ConfigError(f"pos={spec.pos!r}", where=text, mend="Use n, v or nv.")
    return spec


def gather_seeds(
    specs: Sequence[SeedSpec],
    *,
    shuffle: int = 0,
    limit: int | None = None,
    wordnet: str | Path | None = None,
) -> SeedList:
    """Return different seeds of all sources, shuffled and mixed by weight.

    A longer list of the same sources begins with the shorter one, so that a run can be
    continued with more. A source with a weight is drawn from in that proportion until the
    first of them is used up; sources without weights are taken whole.

    Args:
        specs: At least one.
        shuffle: Seed of the shuffle.
        limit: At most so many.
        wordnet: Folder of WordNet's files; None searches the usual places.

    Raises:
        ConfigError: No source is given, or weights are mixed with none.
        DataError: A file is missing or has no such column.
    """
    if not specs:
        raise ConfigError("no source of seeds", where="--seeds", mend="Name at least one.")
    weighted = [spec.weight is not None for spec in specs]
    if any(weighted) and not all(weighted):
        raise ConfigError("give every source a weight, or none", where="--seeds")
    seen: set[str] = set()
    counts: dict[str, SeedCount] = {}
    pools: list[list[Seed]] = []
    for number, spec in enumerate(specs):
        name = spec.name if spec.name not in counts else f"{spec.name} ({number + 1})"
        count = counts[name] = SeedCount()
        pools.append(list(_distinct(_read(spec, wordnet), seen, count)))
        random.Random(f"{shuffle}/{number}").shuffle(pools[-1])
    seeds = _mix(pools, [spec.weight for spec in specs], random.Random(shuffle))
    return SeedList(seeds if limit is None else seeds[:limit], counts)


def _distinct(seeds: Iterable[Seed | None], seen: set[str], count: SeedCount) -> Iterator[Seed]:
    for seed in seeds:
        count.read += 1
        if seed is None:
            count.empty += 1
            continue
        name = seed.text.casefold()
        if name in seen:
            count.duplicates += 1
            continue
        seen.add(name)
        count.kept += 1
        yield seed


def _mix(pools: list[list[Seed]], weights: list[float | None], rng: random.Random) -> list[Seed]:
    """Draw from shuffled pools by weight until one is empty; without weights, all by size."""
    given = [weight for weight in weights if weight is not None]
    if not given:
        seeds = [seed for pool in pools for seed in pool]
        rng.shuffle(seeds)
        return seeds
    places = [iter(pool) for pool in pools]
    mixed: list[Seed] = []
    while (seed := next(rng.choices(places, given)[0], None)) is not None:
        mixed.append(seed)
    return mixed


def _read(spec: SeedSpec, wordnet: str | Path | None) -> Iterator[Seed | None]:
    if spec.name == "wordnet":
        from topa.tideo.wordnet import read_synsets

        texts = read_synsets(wordnet, pos=spec.pos, min_count=spec.min_count)
        return (_clean(text, spec.source or "wordnet") for text in texts)
    if spec.name.startswith("topic:"):
        topic = spec.name.removeprefix("topic:")
        return iter([_clean(topic, spec.source or "topic")])
    path = Path(spec.name)
    if path.suffix not in SUFFIXES:
        raise ConfigError(
            "not a source of seeds",
            where=spec.name,
            mend=f"Give `wordnet`, `topic:TEXT` or a file ({', '.join(SUFFIXES)}).",
        )
    if not path.is_file():
        raise DataError("file not found", where=path, mend="Check the path.")
    if path.suffix == ".txt":
        return (_clean(line, spec.source or "topic") for line in _read_lines(path))
    return _read_column(path, spec)


def _read_column(path: Path, spec: SeedSpec) -> Iterator[Seed | None]:
    if path.suffix == ".parquet":
        columns, rows = _open_parquet(path, spec)
    elif path.suffix == ".jsonl":
        rows = (row for _, row in read_jsonl(path))
        first = next(rows, None)
        if first is None:
            raise DataError("no rows in the file", where=path)
        columns, rows = list(first), _chain(first, rows)
    else:
        table = csv.DictReader(
            _read_lines(path), delimiter="\t" if path.suffix == ".tsv" else ",", strict=True
        )
        columns, rows = _read_header(table, path), _read_table(table, path)
    column = _choose_column(path, spec.column, columns)
    source = spec.source or KNOWN_COLUMNS.get(column.casefold(), "topic")
    return (_clean(row.get(column), source) for row in rows)


def _chain(first: dict, rest: Iterator[dict]) -> Iterator[dict]:
    yield first
    yield from rest


def _read_header(table: csv.DictReader, path: Path) -> list[str]:
    try:
        return list(table.fieldnames or ())
    except csv.Error as error:
        raise DataError(f"not valid CSV ({error})", where=f"{path}, line 1") from None


def _read_table(table: csv.DictReader, path: Path) -> Iterator[dict]:
    try:
        yield from table
    except csv.Error as error:
        raise DataError(
            f"not valid CSV ({error})", where=f"{path}, line {table.line_num}"
        ) from None


def _open_parquet(path: Path, spec: SeedSpec) -> tuple[list[str], Iterator[dict]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise ConfigError(
            "Parquet needs pyarrow", where=path, mend="Run `pip install -e '.[generate]'`."
        ) from None
    try:
        file = ParquetFile(path)
    except ArrowException as error:
        raise DataError(f"not a Parquet file ({error})", where=path) from None
    columns = list(file.schema_arrow.names)
    column = _choose_column(path, spec.column, columns)
    batches = file.iter_batches(columns=[column])
    return columns, (row for batch in batches for row in batch.to_pylist())


def _choose_column(path: Path, wanted: str | None, columns: list[str]) -> str:
    if wanted is None:
        by_name = {column.casefold(): column for column in columns}
        found = next((by_name[known] for known in KNOWN_COLUMNS if known in by_name), None)
    else:
        found = wanted if wanted in columns else None
    if found is None:
        raise DataError(
            f"no column {wanted!r}" if wanted else "no column with a known name",
            where=path,
            mend=f"Add `,column=NAME` with one of: {', '.join(map(str, columns))}.",
        )
    return found


def _read_lines(path: Path) -> Iterator[str]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        try:
            yield from file
        except UnicodeDecodeError as error:
            raise DataError(f"not a UTF-8 text file ({error.reason})", where=path) from None


def _clean(value: object, source: Source) -> Seed | None:
    """Return the seed of a cell: one line, without Ego4D's tags; None if nothing is left."""
    text = value if isinstance(value, str) else "" if value is None else json.dumps(value)
    if source == "ego4d":
        text = re.sub(r"#\s*C\s+C\b", "The camera wearer", text)
        text = re.sub(r"#\s*unsure\b", "something", text, flags=re.IGNORECASE)
        text = re.sub(r"#\s*\w*\s*", "", text)
    text = " ".join(text.split())
    return Seed(source, text) if text else None
