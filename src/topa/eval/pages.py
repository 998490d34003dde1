"""The pages of a run: report.json, report.md, report.html, and a submission where one is due."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from topa.errors import VideoError
from topa.eval.benchmarks.catalogue import Item
from topa.eval.captions import CaptionReport
from topa.eval.results import Report
from topa.eval.sources import VideoIndex, watch_item
from topa.runs import write_json, write_text

EXAMPLES = 6  # of each kind: right, wrong
THUMBNAILS = 4
THUMBNAIL_WIDTH = 160


def write_pages(
    report: Report | CaptionReport, folder: Path, items: Sequence[Item], videos: Path | None = None
) -> None:
    """Write all pages of a report into the folder of its run, each whole or not at all.

    Args:
        report: The figures.
        folder: Where to write.
        items: What was asked, for the examples.
        videos: Folder of the videos, for thumbnails.
    """
    report.save(folder / "report.json")
    write_text(folder / "report.md", render("report.md.jinja", report, [], escape=False))
    examples = choose_examples(report, items, videos)
    write_text(folder / "report.html", render("report.html.jinja", report, examples, escape=True))
    if isinstance(report, Report) and report.n < report.asked:
        # The form of EgoSchema's server; a question without an answer is left out, not guessed.
        answers = {row["id"]: row["predicted"] for row in report.predictions}
        write_json(
            folder / "submission.json",
            {name: answer for name, answer in answers.items() if answer is not None},
        )


def render(
    template: str,
    report: Report | CaptionReport,
    examples: Sequence[dict[str, Any]],
    *,
    escape: bool,
) -> str:
    """Return a page; with `escape` every text is made safe for HTML."""
    environment = Environment(
        autoescape=escape, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = lambda share: "" if share is None else f"{share:.1%}"
    environment.filters["points"] = lambda share: "" if share is None else f" ± {100 * share:.1f}"
    environment.filters["cell"] = lambda text: str(text).replace("|", "\\|").replace("\n", " ")
    source = (resources.files("topa.eval") / template).read_text(encoding="utf-8")
    return environment.from_string(source).render(
        report=report, examples=examples, is_caption=isinstance(report, CaptionReport)
    )


def choose_examples(
    report: Report | CaptionReport, items: Sequence[Item], videos: Path | None
) -> list[dict[str, Any]]:
    """Return the first questions answered rightly and wrongly, each of another video.

    For captions: the first videos. With thumbnails where the videos are at hand.
    """
    by_id = {getattr(item, "qid", item.video): item for item in items}
    chosen: list[dict[str, Any]] = []
    wanted = ("caption",) if isinstance(report, CaptionReport) else ("right", "wrong")
    for group in wanted:
        seen: set[str] = set()
        for row in report.predictions:
            if len(seen) == EXAMPLES:
                break
            if row["video"] in seen or row["reason"] or row["id"] not in by_id:
                continue
            if group != "caption" and (
                row["answer"] is None or (row["predicted"] == row["answer"]) != (group == "right")
            ):
                continue
            seen.add(row["video"])
            item = by_id[row["id"]]
            chosen.append(
                {"group": group, "row": row, "item": item, "images": _thumbnails(videos, item)}
            )
    return chosen


def _thumbnails(videos: Path | None, item: Item) -> list[str]:
    """Return a few frames as data URIs; none where the video is not at hand."""
    if videos is None:
        return []
    try:
        clip = watch_item(VideoIndex(videos), item, THUMBNAILS)
    except VideoError:
        return []  # the list of failures says why
    found = []
    for image in clip.images:
        size = (THUMBNAIL_WIDTH, max(1, round(image.height * THUMBNAIL_WIDTH / image.width)))
        buffer = io.BytesIO()
        image.resize(size).save(buffer, "JPEG", quality=80)
        text = base64.b64encode(buffer.getvalue()).decode("ascii")
        found.append(f"data:image/jpeg;base64,{text}")
    return found
