"""What is in a set of Tideos: sizes, words, kinds of questions, source by source."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from topa.tideo.quality import Summary, words_of
from topa.tideo.schema import Tideo

_STARTS = 12


def measure_tideos(tideos: Sequence[Tideo], *, seed: int = 0) -> dict[str, Any]:
    """Return counts, frames per Tideo, lengths, first words of questions, and vocabulary.

    Vocabulary grows with the amount of text, so it is compared on equal samples, as in the
    paper's table: as many Tideos of every source as the smallest one has.

    Args:
        tideos: All of them.
        seed: Of the samples.
    """
    summary = Summary()
    frames: Counter[int] = Counter()
    starts: Counter[str] = Counter()
    frame_words = objects = caption_words = 0
    by_source: dict[str, list[Tideo]] = defaultdict(list)
    for tideo in tideos:
        summary.add(tideo)
        frames[len(tideo.frames)] += 1
        by_source[tideo.source].append(tideo)
        caption_words += len(words_of(tideo.caption))
        frame_words += sum(len(words_of(frame.caption)) for frame in tideo.frames)
        objects += sum(len(frame.objects) for frame in tideo.frames)
        starts.update(" ".join(words_of(item.question)[:2]) for item in tideo.qas)
    n = max(1, len(tideos))
    return {
        "tideos": len(tideos),
        **summary.to_dict(),
        "frames_per_tideo": dict(sorted(frames.items())),
        "words_per_frame": frame_words / max(1, summary.frames),
        "objects_per_frame": objects / max(1, summary.frames),
        "words_per_caption": caption_words / n,
        "questions_per_tideo": summary.questions / n,
        "question_starts": dict(starts.most_common(_STARTS)),
        "vocabulary": _measure_vocabulary(by_source, seed),
    }


def _measure_vocabulary(by_source: dict[str, list[Tideo]], seed: int) -> dict[str, Any]:
    size = min((len(group) for group in by_source.values()), default=0)
    found: dict[str, Any] = {"tideos_per_source": size, "sources": {}}
    everything: set[str] = set()
    for source, group in sorted(by_source.items()):
        sample = random.Random(f"{seed}/{source}").sample(group, size)
        words = Counter(word for tideo in sample for word in _words(tideo))
        everything.update(words)
        found["sources"][source] = {
            "different_words": len(words),
            "words": sum(words.values()),
            "once": sum(count == 1 for count in words.values()),
        }
    found["together"] = len(everything)
    return found


def _words(tideo: Tideo) -> list[str]:
    texts = [tideo.caption, *(text for frame in tideo.frames for text in frame.texts)]
    return [word for text in texts for word in words_of(text)]
