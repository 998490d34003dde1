"""Options of many questions scored at once, each video read once.

The scores are those that `Topa.score` gives each question alone, in exact arithmetic: the LLM
reads the same tokens at the same positions, and only the order of the sums differs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from topa.answer import Method, Topa
from topa.data.collate import collate
from topa.data.templates import Prompt, Segment
from topa.model.attention import span_video
from topa.model.methods import Choice, Scores, combine, score_similarity
from topa.model.official.quirks import count_slots
from topa.model.packing import mask_layers, span_means, tree_mask
from topa.serve.states import Beginning, Prefixes

_BATCH_TOKENS = 8192
_PRIORS = 1024


@dataclass(frozen=True)
class Asked:
    """Questions with options about one video.

    Attributes:
        key: Names the features.
        features: [n, d] of the video.
        choices: The questions.
    """

    key: Hashable
    features: Tensor
    choices: Sequence[Choice]


class Scorer:
    """Scores options for many requests together.

    What the LLM thinks of the options without the video is kept, for it is the same for all.

    Args:
        topa: The model with encoder and memory.
        prefixes: Reads the beginnings of prompts.
        batch_rows: Questions in one pass.
    """

    def __init__(self, topa: Topa, prefixes: Prefixes, batch_rows: int = 16):
        self._topa, self._prefixes, self._rows = topa, prefixes, batch_rows
        self._priors: OrderedDict[Hashable, Tensor] = OrderedDict()

    @torch.inference_mode()
    def score(self, asked: Sequence[Asked], method: Method, blind: bool) -> Scores:
        """Return for each of `asked`, for each question, scores [number of options]."""
        choices = [each.choices for each in asked]
        features = [each.features for each in asked]
        if method == "similarity":
            return score_similarity(self._topa.encoder, choices, features)
        # One prompt a question: what they share, the video, is read once in any case.
        builder = self._topa.builder
        prompts = [
            builder.choice(*choice) if method == "selection" else builder.likelihood([choice])
            for each in asked
            for choice in each.choices
        ]
        shown = [each for each in asked for _ in each.choices]
        seen = [
            Beginning(each.key, each.features, prompt)
            for each, prompt in zip(shown, prompts, strict=True)
        ]
        found = self._read_shown(seen, prompts, method, blind)
        rest = iter(found)
        scores = [[next(rest) for _ in each.choices] for each in asked]
        if method == "combined" and not blind:
            scores = combine(scores, score_similarity(self._topa.encoder, choices, features))
        return scores

    def _read_shown(
        self, seen: list[Beginning], prompts: Sequence[Prompt], method: Method, blind: bool
    ) -> list[Tensor]:
        """Return scores of each prompt's one question: with the video, less those without it."""
        subtract = method != "selection" and self._topa.model.config.subtract_blind
        names = [tuple(segment.ids for segment in prompt.segments) for prompt in prompts]
        fresh: dict[Hashable, Beginning] = {}
        if blind or subtract:
            nothing = torch.zeros(0, self._topa.encoder.dim)
            fresh = {
                name: Beginning(None, nothing, prompt)
                for name, prompt in zip(names, prompts, strict=True)
                if name not in self._priors
            }
        # Both kinds in the same passes: the fuller, the cheaper.
        found = self._read([*([] if blind else seen), *fresh.values()])
        count = len(found) - len(fresh)
        self._priors.update(zip(fresh, found[count:], strict=True))
        if not (blind or subtract):
            return found
        priors = [self._priors[name] for name in names]
        for name in names:
            self._priors.move_to_end(name)
        while len(self._priors) > _PRIORS:
            self._priors.popitem(last=False)
        if blind:
            return priors
        return [shown - hidden for shown, hidden in zip(found[:count], priors, strict=True)]

    def _read(self, beginnings: Sequence[Beginning]) -> list[Tensor]:
        """Return the mean token log-likelihood of the options of each prompt's one question."""
        tails = [_tail(each.prompt) for each in beginnings]
        order = sorted(range(len(tails)), key=lambda i: -len(tails[i]))
        scores: list[Tensor] = [torch.empty(0)] * len(tails)
        while order:
            count = max(1, min(self._rows, _BATCH_TOKENS // len(tails[order[0]])))
            rows, order = order[:count], order[count:]
            found = self._pass([beginnings[i] for i in rows], [tails[i] for i in rows])
            for i, each in zip(rows, found, strict=True):
                scores[i] = each
        return scores

    def _pass(self, beginnings: Sequence[Beginning], tails: Sequence[Prompt]) -> list[Tensor]:
        model = self._topa.model
        before = self._prefixes.read(beginnings)
        nothing = [each.features[:0] for each in beginnings]
        batch = collate(tails, nothing, model.config.num_frames).to(model.device)
        # Who sees whom: all of the beginning, and of the rest what stands before in the tree.
        tree = tree_mask(batch.segment_ids, batch.visible_segments, batch.segment_ids >= 0)
        known = before.mask.bool()[:, None, :].expand(-1, tree.shape[1], -1)
        counted = known[:, 0]
        if model.config.keep_slot_positions:
            counted = count_slots(counted, before.slots)
        earlier = (counted.cumsum(-1) - 1).clamp(min=0)
        position_ids = counted.sum(-1, keepdim=True) + tree.sum(-1) - 1
        cache = before.cache()
        hidden = model.language_model.get_decoder()(
            inputs_embeds=model.embed(batch.input_ids, None, None),
            attention_mask=mask_layers(
                torch.cat([known, tree], -1),
                position_ids,
                model.language_config,
                torch.cat([earlier, position_ids], -1),
            ),
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
            topa_video=span_video(before.slots, before.mask.shape[1], tree.shape[1], cache),
        ).last_hidden_state
        log_probs = model.log_probs_of(hidden.to(model.device), batch)
        means = span_means(log_probs, batch.target_spans, len(batch.span_groups)).cpu()
        groups = batch.span_groups.cpu()
        return [means[groups == question] for question in range(len(tails))]


def _tail(prompt: Prompt) -> Prompt:
    """Return what follows the video, as a prompt of its own."""
    segments = [
        Segment(segment.ids, segment.parent - 1, segment.slots, segment.is_label)
        for segment in prompt.segments[1:]
    ]
    options = [[branch - 1 for branch in branches] for branches in prompt.options]
    return Prompt(segments, options, prompt.answers)
