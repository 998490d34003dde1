"""What of each benchmark lies in a folder: files, counts against the published ones, videos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from topa.errors import ConfigError, DataError, VideoError
from topa.eval.benchmarks import BENCHMARKS, find_benchmark
from topa.eval.benchmarks.catalogue import Benchmark, name_count
from topa.eval.benchmarks.files import find_file


def check_folder(
    folder: Path, names: Sequence[str] | None = None, videos: Path | None = None
) -> list[dict[str, Any]]:
    """Return the state of every split of every benchmark.

    Args:
        folder: Holds the files, or a subfolder per benchmark.
        names: Only these benchmarks.
        videos: A folder of videos to look each one up in.

    Returns:
        Rows of `benchmark`, `split`, `state` ("ready"; "differs": other counts than published;
        "broken": cannot be read; "missing"), `message`, `count`.

    Raises:
        ConfigError: There is no such folder or benchmark.
    """
    if not folder.is_dir():
        raise ConfigError("no such folder", where=folder, mend="Check the path.")
    chosen = [find_benchmark(name) for name in names] if names else list(BENCHMARKS.values())
    rows = []
    for benchmark in chosen:
        # MVBench has a split per task: what each lacks is told by the whole.
        splits = ["all"] if "all" in benchmark.splits else list(benchmark.splits)
        rows += [_check_split(benchmark, split, folder, videos) for split in splits]
    return rows


def _check_split(
    benchmark: Benchmark, name: str, folder: Path, videos: Path | None
) -> dict[str, Any]:
    split = benchmark.splits[name]
    row = {"benchmark": benchmark.name, "split": name, "count": None}
    missing = [files for files in split.files if find_file(folder, files, benchmark.name) is None]
    if missing:
        listed = ", ".join(missing[:3]).replace("|", " or ")
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        message = f"needs {listed}{more}; get it from {benchmark.source}"
        return {**row, "state": "missing", "message": message}
    try:
        items = benchmark.read(folder, name, False)
    except DataError as error:
        return {**row, "state": "broken", "message": str(error)}
    differs = name_count(split, items)
    message = differs or f"{len(items):,} items, as published"
    if not split.answered:
        message += "; the right answers are with a test server"
    if videos is not None:
        message += f"; {_count_videos(benchmark, items, videos)}"
    return {
        **row,
        "count": len(items),
        "state": "differs" if differs else "ready",
        "message": message,
    }


def _count_videos(benchmark: Benchmark, items: Sequence[Any], videos: Path) -> str:
    from topa.eval.sources import VideoIndex

    index = VideoIndex(videos)
    names = sorted({item.video for item in items})
    absent = []
    for name in names:
        try:
            index.find(name)
        except VideoError:
            absent.append(name)
    found = f"{len(names) - len(absent):,} of {len(names):,} videos found"
    return found if not absent else f"{found}, the first missing is {absent[0]}"
