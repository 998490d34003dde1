"""The tokenizer, beside recordings of Stanford's and, where Java is, beside the program itself."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topa.eval.ptb import PUNCTUATION, tokenize_all, tokenize_caption
from topa.tideo.textvid import load_textvid

# Left: a caption. Right: what `PTBTokenizer -preserveLines -lowerCase` (CoreNLP 3.4.1) gave.
RECORDED = [
    (
        "A man's colour t-shirt is grey, isn't it? He can't go.",
        "a man 's colour t-shirt is grey , is n't it ? he ca n't go .",
    ),
    (
        "the dogs' bowls are black-and-white (very) and/or 50% off",
        "the dogs ' bowls are black-and-white -lrb- very -rrb- and/or 50 % off",
    ),
    (
        "mr. smith lives in the u.s. with dr. jones at 3:30 p.m. on plan b.",
        "mr. smith lives in the u.s. with dr. jones at 3:30 p.m. on plan b.",
    ),
    (
        "cannot gonna gotta wanna lemme gimme 'tis 'twas",
        "can not gon na got ta wan na lem me gim me 't is 't was",
    ),
    (
        "1,000 people 3.5 km 10k 4x4 3-d 2nd 1990s '90s rock 'n' roll o'clock y'all he'd've",
        "1,000 people 3.5 km 10k 4x4 3-d 2nd 1990s '90s rock 'n' roll o'clock y' all he 'd 've",
    ),
    (
        "tv,radio a.b.c e.g. i.e. etc. no.5 no. 5 vs. jr. st. the end.",
        "tv , radio a.b.c e.g. i.e. etc. no. 5 no. 5 vs. jr. st. the end .",
    ),
    (
        "AT&T r&b & &amp; a*b [brackets] {curly} <tag> ½ £5 ¢",
        "at&t r & b & & a * b -lsb- brackets -rsb- -lcb- curly -rcb- <tag> 1/2 # 5 cents",
    ),
    ("hello;world foo:bar what?! wow!!!", "hello ; world foo : bar what ?! wow !!!"),
    ("ain't ma'am c'mon ol' 'em rock'n'roll", "ai n't ma'am c'mon ol' 'em rock 'n' roll"),
    (
        "snake_case @user #tag :) a@b.com http://x.org/a?b=1",
        "snake_case @user #tag :-rrb- a@b.com http://x.org/a?b=1",
    ),
    ("half sunk ... a - b -- c", "half sunk ... a - b -- c"),
]


@pytest.mark.parametrize(("caption", "wanted"), RECORDED)
def test_tokens_are_those_of_stanford(caption, wanted):
    assert tokenize_all(caption) == wanted.split(" ")


def test_punctuation_does_not_count_but_brackets_do():
    assert tokenize_caption('A "nice" (red) cup -- hot!') == [
        *("a", "nice", "-lrb-", "red", "-rrb-", "cup", "hot"),
        # A single mark is in the scripts' list; several together are not.
    ]
    assert tokenize_caption("what?!") == ["what", "?!"]


@given(st.text(max_size=60))
def test_any_text_gives_lower_case_tokens_without_spaces(text):
    for token in tokenize_caption(text):
        assert token
        assert " " not in token
        assert token not in PUNCTUATION
    assert tokenize_caption(text) == tokenize_caption(f"  {text} ")


def find_stanford() -> Path | None:
    spec = importlib.util.find_spec("pycocoevalcap")
    for place in (spec.submodule_search_locations or ()) if spec is not None else ():
        jar = Path(place) / "tokenizer" / "stanford-corenlp-3.4.1.jar"
        if jar.is_file():
            return jar
    return None


@pytest.mark.slow
def test_every_text_of_textvid_is_tokenized_as_stanford_does(tmp_path):
    jar = find_stanford()
    if jar is None or shutil.which("java") is None:
        pytest.skip("needs Java and the package pycocoevalcap")
    texts = {
        text.replace("\n", " ")
        for split in ("train", "everyday", "heldout")
        for tideo in load_textvid(split)
        for text in (
            tideo.caption,
            *(text for frame in tideo.frames for text in frame.texts),
            *(text for item in tideo.qas for text in (item.question, *item.options)),
        )
    }
    lines = sorted(texts)
    # A line between them: where the next one begins like a sentence, "bowl A." loses its stop.
    text = "".join(f"{line}\nthen\n" for line in lines)
    (tmp_path / "texts.txt").write_text(text, encoding="utf-8")
    command = ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    done = subprocess.run(
        [*command, "-preserveLines", "-lowerCase", str(tmp_path / "texts.txt")],
        capture_output=True,
        text=True,
        timeout=280,
        check=True,
    )
    wanted = done.stdout.split("\n")[::2]
    differing = [
        line
        for line, tokens in zip(lines, wanted, strict=False)
        if tokenize_caption(line)
        != [token for token in tokens.rstrip().split(" ") if token not in PUNCTUATION]
    ]
    assert len(lines) > 40_000
    assert differing == []
