"""METEOR 1.5, where it can be had: its own Java program out of an installed pycocoevalcap.

Its matcher rests on a paraphrase table of 60 MB that comes with the program (LGPL) and is not
copied here. Without Java or the package the score is left out with the reason, never replaced by
another one of the same name.
"""

from __future__ import annotations

import importlib.util
import math
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

JAR = "meteor-1.5.jar"
TIME_LIMIT = 1800.0


def find_meteor() -> Path | str:
    """Return the program, or why there is none."""
    if shutil.which("java") is None:
        return "Java is not installed (any JRE from 8 on)"
    spec = importlib.util.find_spec("pycocoevalcap")  # finds it without importing it
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    for place in places:
        jar = Path(place) / "meteor" / JAR
        if jar.is_file():
            return jar
    return "needs its carrier: pip install --no-deps pycocoevalcap==1.2"


def score_meteor(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return the METEOR score of a set of captions, or the reason why there is none.

    Args:
        captions: Tokens joined by spaces.
        references: Likewise, for each caption.

    Returns:
        `score` and `stderr` over videos, or `reason`.
    """
    jar = find_meteor()
    if isinstance(jar, str):
        return {"score": None, "stderr": None, "reason": jar}
    lines = [
        f"SCORE ||| {' ||| '.join(refs)} ||| {' '.join(text.split())}"
        for text, refs in zip(captions, references, strict=True)
    ]
    try:
        statistics = _run(jar, lines)
        line = "EVAL ||| " + " ||| ".join(statistics[: len(lines)])
        scores = [float(value) for value in _run(jar, [line])]
    except (subprocess.SubprocessError, OSError, ValueError) as error:
        return {"score": None, "stderr": None, "reason": f"METEOR failed: {error}"}
    each, overall = scores[: len(lines)], scores[len(lines)]
    spread = None
    if len(each) > 1:
        mean = sum(each) / len(each)
        spread = math.sqrt(sum((x - mean) ** 2 for x in each) / (len(each) - 1) / len(each))
    return {"score": overall, "stderr": spread}


def _run(jar: Path, lines: Sequence[str]) -> list[str]:
    """Return the lines that METEOR answers."""
    command = ["java", "-jar", "-Xmx2G", jar.name, "-", "-", "-stdio", "-l", "en", "-norm"]
    done = subprocess.run(
        command,
        cwd=jar.parent,
        input="".join(f"{line}\n" for line in lines),
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT,
        check=True,
    )
    return done.stdout.splitlines()
