"""Penn Treebank tokens in plain Python, as the caption metrics of MS-COCO count them.

Reproduces what `PTBTokenizer -preserveLines -lowerCase` of Stanford CoreNLP 3.4.1, a Java
program, gives for captions; tests compare the two. Like the metrics' own scripts, most
punctuation is dropped afterwards, but brackets are not: their lower-cased names (-lrb-) are not
in the scripts' list. Each caption stands alone here; the Java program reads them as one text, so
that "in bowl A." keeps its full stop or not by how the next caption begins.
"""

from __future__ import annotations

import re

TOKENIZER = "ptb-python-1 (equal to Stanford PTBTokenizer 3.4.1 on captions)"

# What the metrics' scripts drop.
PUNCTUATION = frozenset(
    [
        "''",
        "'",
        "``",
        "`",
        "-LRB-",
        "-RRB-",
        "-LCB-",
        "-RCB-",
        ".",
        "?",
        "!",
        ",",
        ":",
        "-",
        "--",
        "...",
        ";",
    ]
)

_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_CURRENCY = {"£": "#", "€": "$", "¤": "$", "¢": "cents"}
_FRACTIONS = {"½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}
_QUOTES = frozenset('"“”„«»‘`') | {"``", "''"}
_ENTITIES = {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&apos;": "'", "&nbsp;": " "}
# Written as one word, two for the treebank: where the second begins.
_SPLIT_IN_TWO = {
    "cannot": 3,
    "gonna": 3,
    "gotta": 3,
    "wanna": 3,
    "lemme": 3,
    "gimme": 3,
    "'tis": 2,
    "'twas": 2,
}
# Abbreviations that keep their full stop; the rest of them lose it at the end of a sentence.
_ABBREVIATIONS = (
    "mr mrs ms dr drs prof st jr sr mt ft gen lt col sgt capt cmdr rev hon gov sen rep reps sens"
    " jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thur thurs fri"
    " inc co cos corp pp vs etc al seq cf ltd plc bros ave blvd ph.d adm det ref messrs pres"
)

_L = r"[^\W\d_]"
_A = "['’]"
_TOKEN = re.compile(
    rf"""
      (?P<space>\s+)
    | (?P<url>(?:https?://|www\.)[^\s"<>|()]+[^\s"<>|.!?(),;:{{}}'-])
    | (?P<domain>(?:[a-z0-9-]+\.)+(?:com|net|org|edu)(?!{_L}|\d))
    | (?P<mail>[a-z0-9][a-z0-9.+_-]*@(?:[a-z0-9-]+\.)+[a-z]+)
    | (?P<tag></?[a-z!][^<>]*>)
    | (?P<handle>[@\#]{_L}(?:{_L}|[\d_])+)
    | (?P<entity>&(?:amp|lt|gt|quot|apos|nbsp);)
    | (?P<mixed>\d+[ ]\d+/\d+(?!\d))
    | (?P<fraction>\d+/\d+(?!\d)|\d*[½¼¾⅓⅔])
    | (?P<split>(?:cannot|gonna|gotta|wanna|lemme|gimme|{_A}tis|{_A}twas)(?!{_L}|\d))
    | (?P<company>(?-i:[A-Z]+&[A-Z]+))
    | (?P<smiley>[:;=]-?[()])
    | (?P<decade>{_A}\d\ds(?!{_L})|{_A}\d\d(?!\d))
    | (?P<number>[-+]?(?:\d+(?:[.,:]\d+)+|\.\d+)(?:s(?!{_L}))?)
    | (?P<acronym>{_L}(?:\.{_L})+(?!{_L}|\d)\.?)
    | (?P<abbreviation>(?:{_ABBREVIATIONS.replace(" ", "|").replace(".d", "[.]d")})\.(?!\.))
    | (?P<no>no\.(?=\s*\d))
    | (?P<initial>(?:{_L}|ph\.d)\.(?=\s|$|\.(?!\.)))
    | (?P<degree>ph\.d)
    | (?P<inside>{_L}+\.(?=[,;:]))
    | (?P<negated>{_L}+?(?=n{_A}t(?!{_L})))
    | (?P<nt>n{_A}t(?!{_L}))
    | (?P<clitic>{_A}(?:s|m|d|re|ve|ll)(?!{_L}|\d))
    | (?P<programming>c(?:\+\+|\#))
    | (?P<y>y{_A}(?={_L}))
    | (?P<apostrophe>{_A}n{_A}|{_A}n(?!{_L})|{_A}em(?!{_L})|{_A}till?(?!{_L})|{_A}cause(?!{_L})
        |(?:o{_A}clock|o{_A}er|e{_A}er|c{_A}mon|d{_A}ye|ol{_A}|[ldj]{_A}(?={_L})
        |cont{_A}d|ev{_A}ry|li{_A}l|s{_A}mores)(?!{_L})
        |{_L}+[aeiouy]{_A}[aeiou]{_L}*)
    | (?P<word>(?:{_L}|\d)(?:{_L}|\d|[-_/](?={_L}|\d))*)
    | (?P<dots>\.{{3,}}|…)
    | (?P<dash>-{{2,}}|[–—])
    | (?P<marks>[?!]+)
    | (?P<other>.)
    """,
    re.VERBOSE | re.IGNORECASE,
)


def tokenize_all(caption: str) -> list[str]:
    """Return all tokens of a caption, punctuation with them."""
    tokens: list[str] = []
    for match in _TOKEN.finditer(caption):
        kind, text = match.lastgroup, match[0].lower().replace("’", "'")
        if kind == "space" or (kind == "other" and ord(text[0]) > 0xFFFF):
            continue
        if kind == "split":
            tokens += [text[: _SPLIT_IN_TWO[text]], text[_SPLIT_IN_TWO[text] :]]
        elif kind == "entity":
            tokens += tokenize_all(_ENTITIES[text])
        elif kind == "mixed":
            tokens.append(text.replace(" ", "\xa0"))
        elif kind == "dots":
            tokens.append("...")
        elif kind == "dash":
            tokens.append("--")
        elif kind == "smiley":
            tokens.append(text[:-1] + _BRACKETS[text[-1]])
        elif text in _QUOTES:
            tokens.append("''")  # which of the two signs it is does not count
        elif kind == "fraction":
            tokens.append(text[:-1] + _FRACTIONS[text[-1]] if text[-1] in _FRACTIONS else text)
        else:
            tokens.append(_BRACKETS.get(text) or _CURRENCY.get(text) or text)
    return tokens


def tokenize_caption(caption: str) -> list[str]:
    """Return the tokens of a caption that count in metrics: lower case, no punctuation."""
    return [token for token in tokenize_all(caption) if token not in PUNCTUATION]
