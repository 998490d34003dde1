"""How well the untrained LLM answers when the video is given to it as text.

This bounds what slots can be worth before any training, and tells how much is lost on the
way from a caption to a feature to words. Validation Tideos (never the held-out ones),
likelihood with the blind likelihood subtracted.

    python benchmarks/reading.py [--llm embedded] [--tideos 90]
"""

from __future__ import annotations

import argparse

import torch

from topa.data.templates import OPEN_INSTRUCTION, Prompt, PromptBuilder, Segment
from topa.eval.metrics import accuracy_report
from topa.features.encoder import load_encoder
from topa.features.store import encode_tideos
from topa.model.config import TopaConfig
from topa.model.language import load_language
from topa.model.scoring import score_options
from topa.model.topa import TopaForConditionalGeneration
from topa.model.words import WordDictionary, collect_words
from topa.tideo.schema import Tideo
from topa.tideo.textvid import load_tideos
from topa.train.align import split_validation


def prompt_of(builder: PromptBuilder, tideo: Tideo, text: str) -> Prompt:
    """Return the open prompt with a text where the video would be."""
    ids = builder.start_ids + builder.tokenize(f"{OPEN_INSTRUCTION}\nVideo:{text}")
    prompt = Prompt([Segment(ids, -1, (-1,) * len(ids))])
    for item in tideo.qas:
        builder.add_options(prompt, builder.add_question(prompt, item.question), item.options)
    return prompt


def main() -> None:
    """Print accuracy by what stands in the place of the video."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--llm", default="embedded")
    parser.add_argument("--tideos", type=int, default=90)
    options = parser.parse_args()
    training, validation = split_validation(load_tideos("textvid"), options.tideos, 0)
    language = load_language(options.llm)
    model = TopaForConditionalGeneration(
        TopaConfig(text_config=language.model.config, variant="projector"), language.model
    )
    builder = PromptBuilder(language.tokenizer, 0)
    encoder = load_encoder("embedded")
    words = collect_words(training, language.tokenizer)
    dictionary = WordDictionary(len(words), encoder.dim)
    dictionary.fill(encoder.encode_text(words), [builder.tokenize(f" {word}") for word in words])
    features = encode_tideos(validation, encoder)

    def said(count: int) -> list[str]:
        """Return each Tideo's frames in words of the dictionary."""
        return [
            "; ".join(
                " ".join(words[i] for i in row)
                for row in dictionary.pursue(features.of(place), count).tolist()
            )
            for place in range(len(validation))
        ]

    texts = {
        "nothing (blind, raw)": [""] * len(validation),
        "the global caption": [tideo.caption for tideo in validation],
        "all frame captions": [
            " ".join(frame.caption for frame in tideo.frames) for tideo in validation
        ],
        "all objects": [
            ", ".join(name for frame in tideo.frames for name in frame.objects)
            for tideo in validation
        ],
        "2 words a frame, from its feature": said(2),
        "4 words a frame, from its feature": said(4),
        "8 words a frame, from its feature": said(8),
    }
    answers = [item.answer for tideo in validation for item in tideo.qas]
    groups = [tideo.id for tideo in validation for _ in tideo.qas]
    blind = None
    for name, given in texts.items():
        prompts = [
            prompt_of(builder, tideo, f" {text}" if text else "")
            for tideo, text in zip(validation, given, strict=True)
        ]
        empty = [torch.zeros(0, model.config.feature_dim)] * len(prompts)
        scores = [q for prompt in score_options(model, prompts, empty) for q in prompt]
        blind = scores if blind is None else blind
        shown = scores if scores is blind else [a - b for a, b in zip(scores, blind, strict=True)]
        right = [int(s.argmax()) == a for s, a in zip(shown, answers, strict=True)]
        figures = accuracy_report(right, groups, [len(s) for s in scores])
        print(f"{name:36} {figures['accuracy']:.3f} ± {figures['stderr']:.3f}  N {figures['n']}")


if __name__ == "__main__":
    main()
