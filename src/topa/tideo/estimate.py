"""What a run will use, before anything is spent."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from topa.tideo.composition import Recipe, compose_tideo
from topa.tideo.pace import Pace
from topa.tideo.seeds import Seed
from topa.tideo.textvid import load_textvid

_SAMPLE = 200
_CHARACTERS = 4  # of English to a token, about
_STORY_TOKENS = 350


def estimate_run(seeds: Sequence[Seed], recipe: Recipe, pace: Pace) -> dict[str, Any]:
    """Return tokens and USD of writing Tideos for seeds, without faults and corrections.

    Prompts are measured on a sample of the seeds, at four characters a token; a reply is taken
    to be as long as a Tideo of TextVid-mini, or `max_tokens` if that is less.

    Returns:
        prompt_tokens, completion_tokens, cost, and `most`: the cost if every reply were as
        long as it may be.
    """
    sample = random.Random(0).sample(seeds, min(_SAMPLE, len(seeds)))
    prompt = most = 0.0
    for seed in sample:
        call = next(compose_tideo(seed, recipe, "estimate"))
        prompt += sum(len(message["content"]) for message in call.messages) / _CHARACTERS
        most += pace.most_of(call)
    scale = len(seeds) / len(sample)
    tideos = load_textvid("train")[:_SAMPLE]
    reply = sum(len(tideo.model_dump_json()) for tideo in tideos) / len(tideos) / _CHARACTERS
    reply = min(reply, recipe.max_tokens)
    if recipe.style.mode == "two":
        # The second step repeats the story, and shows the examples.
        prompt, reply, most = (
            prompt * 2 + len(sample) * _STORY_TOKENS,
            reply + _STORY_TOKENS,
            2 * most,
        )
    used = (round(prompt * scale), round(reply * len(seeds)))
    return {
        "prompt_tokens": used[0],
        "completion_tokens": used[1],
        "cost": pace.cost(*used),
        "most": most * scale,
    }
