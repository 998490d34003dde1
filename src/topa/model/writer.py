"""The embedded LLM as a writer of Tideos: no endpoint, no GPU, slow and simple.

Decoding is constrained by the JSON schema (llguidance), so that even 135 million parameters write
what has the form of a Tideo. What it writes is plain and often odd.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerFast

from topa.errors import ConfigError
from topa.model.language import Language, load_language
from topa.tideo.backends import Call, Completion, RejectedFault

_TOP_P = 0.9
_REPEAT = 1.1  # what was said lately gets less likely by this factor, or options repeat
_LATELY = 48


class LanguageWriter:
    """Answers calls with a causal LM in this process, one after the other.

    Args:
        language: The LLM; None loads the embedded one when it is first needed.
        model: Name to record.

    Raises:
        ConfigError: llguidance is not installed.
    """

    parallel: int | None = 1

    def __init__(self, language: Language | None = None, model: str = "embedded"):
        try:
            import llguidance.hf
        except ImportError:
            raise ConfigError(
                "constrained decoding needs llguidance, which is not installed",
                where=model,
                mend="Run `pip install -e '.[generate]'`.",
            ) from None
        self._guidance = llguidance
        self._language = language
        self.model = model
        self._tokens: Any = None

    async def complete(self, call: Call) -> Completion:
        """Answer a call in a thread; see `topa.tideo.backends.Backend.complete`."""
        return await asyncio.to_thread(self.write, call)

    async def close(self) -> None:
        """Nothing to close: the LLM stays for the next run."""

    @torch.inference_mode()
    def write(self, call: Call) -> Completion:
        """Return the reply to a call, sampled with the call's own draw.

        Raises:
            RejectedFault: The prompt leaves no room for a reply.
        """
        if self._language is None:
            self._language = load_language("embedded")
        tokenizer, model = self._language.tokenizer, self._language.model
        prompt: Any = tokenizer.apply_chat_template(
            call.messages, add_generation_prompt=True, return_dict=False
        )
        room = int(model.config.max_position_embeddings) - len(prompt)
        if room < call.max_tokens:
            raise RejectedFault(f"prompt of {len(prompt)} tokens: too long for this LLM")
        matcher = None if call.schema is None else self._match(call.schema, tokenizer)
        generator = torch.Generator().manual_seed(call.draw)
        tokens = self._decode(prompt, matcher, call, generator)
        ended = tokens and tokens[-1] == tokenizer.eos_token_id
        finished = ended or (matcher is not None and matcher.is_stopped())
        text = str(tokenizer.decode(tokens, skip_special_tokens=True))
        return Completion(text, len(prompt), len(tokens), "stop" if finished else "length")

    def _match(self, schema: dict[str, Any], tokenizer: Any) -> Any:
        """Return what tells which tokens may follow under a schema."""
        if self._tokens is None:
            assert isinstance(tokenizer, PreTrainedTokenizerFast)
            self._tokens = self._guidance.hf.from_tokenizer(tokenizer)
        matcher = self._guidance.LLMatcher
        compact: Any = {"whitespace_flexible": False}
        grammar = matcher.grammar_from_json_schema(json.dumps(schema), overrides=compact)
        return matcher(self._tokens, grammar)

    def _decode(
        self, prompt: list[int], matcher: Any, call: Call, generator: torch.Generator
    ) -> list[int]:
        """Sample tokens; what the grammar leaves no choice about is not computed one by one."""
        assert self._language is not None
        model = self._language.model
        stop = self._language.tokenizer.eos_token_id
        cache, fed = DynamicCache(), prompt
        written: list[int] = []
        while len(written) < call.max_tokens:
            logits = model(
                input_ids=torch.tensor([fed]), past_key_values=cache, logits_to_keep=1
            ).logits[0, -1]
            if matcher is not None:
                mask = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
                allowed = np.unpackbits(mask, bitorder="little")[: len(logits)].astype(bool)
                logits = logits.masked_fill(~torch.from_numpy(allowed), -torch.inf)
            token = _sample(logits, written, call.temperature, generator)
            fed = [token]
            if matcher is not None:
                matcher.consume_token(token)
                if not matcher.is_stopped():
                    forced = matcher.compute_ff_tokens()
                    matcher.consume_tokens(forced)
                    fed += forced
                if matcher.is_error():
                    raise RejectedFault(f"the grammar came to an end: {matcher.get_error()[:200]}")
            written += fed
            if token == stop or (matcher is not None and matcher.is_stopped()):
                break
        return written


def _sample(
    logits: Tensor, written: list[int], temperature: float, generator: torch.Generator
) -> int:
    """Return a token drawn from [vocabulary] logits: repetition penalty, temperature, top-p."""
    if written:
        said = torch.tensor(sorted(set(written[-_LATELY:])))
        values = logits[said]
        # Dividing would make negative ones likelier (Keskar et al., 2019, section 4.1).
        logits[said] = torch.where(values > 0, values / _REPEAT, values * _REPEAT)
    if temperature == 0:
        return int(logits.argmax())
    shares, order = torch.softmax(logits / temperature, dim=-1).sort(descending=True)
    shares[shares.cumsum(0) - shares > _TOP_P] = 0.0
    return int(order[torch.multinomial(shares, 1, generator=generator)])
