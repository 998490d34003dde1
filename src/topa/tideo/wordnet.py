"""Seeds out of WordNet's files, read where the user has them: topa ships no text of WordNet."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from topa.errors import ConfigError, DataError

DEBIAN_FOLDER = Path("/usr/share/wordnet")
_NEEDED = ("index.noun", "data.noun", "index.verb", "data.verb", "cntlist.rev")
_LEXICOGRAPHER_FILES = 45  # lexnames(5WN): numbers 00 to 44


def find_wordnet(folder: str | Path | None = None) -> Path:
    """Return a folder with WordNet's files: the given one, nltk's, or that of `wordnet-base`.

    Raises:
        DataError: There is none, or a file is missing in the given one.
    """
    if folder is not None:
        missing = [name for name in _NEEDED if not (Path(folder) / name).is_file()]
        if missing:
            raise DataError(f"WordNet's file {missing[0]} is missing", where=folder)
        return Path(folder)
    places = [*_nltk_folders(), DEBIAN_FOLDER]
    for place in places:
        if all((place / name).is_file() for name in _NEEDED):
            return place
    raise DataError(
        "WordNet is not installed",
        where="wordnet",
        mend="Run `apt-get install wordnet-base` or `python -m nltk.downloader wordnet`"
        " (and unpack it), or name a folder with --wordnet.",
    )


def _nltk_folders() -> list[Path]:
    import_nltk()
    from nltk import data

    return [Path(root) / "corpora" / "wordnet" for root in data.path]


def import_nltk() -> Any:
    """Return nltk's corpus reader of WordNet.

    Raises:
        ConfigError: nltk is not installed.
    """
    try:
        from nltk.corpus.reader import wordnet
    except ImportError:
        raise ConfigError(
            "WordNet is read with nltk, which is not installed",
            where="wordnet",
            mend="Run `pip install -e '.[generate]'`.",
        ) from None
    return wordnet


def read_synsets(
    folder: str | Path | None = None, *, pos: str = "nv", min_count: int = 1
) -> Iterator[str]:
    """Yield `word, word: gloss` of synsets, e.g. of nouns and verbs in use.

    Args:
        folder: WordNet's files; None searches.
        pos: n for nouns, v for verbs, or both.
        min_count: How often the words of a synset occur in that sense in WordNet's tagged
            texts, at least; 0 takes every synset.

    Raises:
        DataError: WordNet is missing or damaged.
    """
    root = find_wordnet(folder)
    reader = _open_reader(root)
    counts = _read_counts(reader)
    for part in pos:
        for synset in reader.all_synsets(part):
            lemmas = synset.lemmas()
            if min_count and sum(counts.get(lemma.key(), 0) for lemma in lemmas) < min_count:
                continue
            words = ", ".join(lemma.name().replace("_", " ") for lemma in lemmas[:3])
            yield f"{words}: {synset.definition()}"


def _read_counts(reader: Any) -> dict[str, int]:
    """Return how often each sense is tagged; nltk would search the file once per word."""
    with reader.open("cntlist.rev") as file:
        return {row[0]: int(row[2]) for row in map(str.split, file)}


def _open_reader(root: Path) -> Any:
    """Return nltk's reader; Debian leaves out `lexnames`, whose names are not needed here."""
    module = import_nltk()
    from nltk import data

    # nltk opens files below its own folders only; this one is named by the user or the system.
    if str(root.resolve()) not in data.path:
        data.path.append(str(root.resolve()))

    class Reader(module.WordNetCorpusReader):  # type: ignore[name-defined, misc]
        def open(self, file: str) -> Any:
            if file == "lexnames" and not (root / file).is_file():
                rows = (f"{i:02d}\tlexnames.{i:02d}\t1" for i in range(_LEXICOGRAPHER_FILES))
                return io.StringIO("\n".join(rows) + "\n")
            return super().open(file)

        def map_wn(self, version: str = "wordnet") -> None:
            """Nothing: the mapping between versions serves other languages."""

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The multilingual functions")
            return Reader(str(root), None)
    except (OSError, ValueError, module.WordNetError) as error:
        raise DataError(f"WordNet cannot be read ({error})", where=root) from None
