"""Scores of options: means per token, in the order asked, one pass however many options."""

from __future__ import annotations

import pytest
import torch

from topa.model.scoring import score_options, span_means


def test_means_are_per_token_of_each_span():
    log_probs = torch.tensor([-1.0, -3.0, -5.0, -0.5])
    found = span_means(log_probs, torch.tensor([0, 2, 2, 0]), 4)
    # Span 0: (-1 - 0.5) / 2; span 2: (-3 - 5) / 2; spans 1 and 3 have no tokens.
    assert found.tolist() == [-0.75, 0.0, -4.0, 0.0]


@pytest.fixture
def passes(make_model):
    """A model that notes the tokens [B, S] of every pass through its LLM."""
    model = make_model()
    seen: list[tuple[int, ...]] = []
    model.language_model.get_decoder().register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(tuple(kwargs["inputs_embeds"].shape[:2])),
        with_kwargs=True,
    )
    return model, seen


def test_options_share_one_prefix_pass(passes, make_prompt, make_features):
    """The official code runs one whole padded forward pass per option."""
    model, seen = passes
    prompt = make_prompt(0, [[2, 3, 1, 4, 2], [1, 1, 1, 1, 1]], before=40)
    score_options(model, [prompt], [make_features(0)])
    [(batch, length)] = seen
    # 40 tokens and 4 slots once, both questions once, and 17 tokens of options.
    assert len(prompt) == 44 + (2 + 3) + 17
    assert batch == 1
    assert len(prompt) <= length < len(prompt) + 8  # padded to a multiple of 8


def test_prompts_of_similar_length_share_a_batch(passes, make_prompt, make_features):
    model, seen = passes
    lengths = [30, 2, 31, 3]
    prompts = [make_prompt(i, [[2, 2]], before=n) for i, n in enumerate(lengths)]
    score_options(model, prompts, [make_features(i) for i in range(4)], batch_size=2)
    assert [length for _, length in seen] == [16, 48]


def test_scores_come_in_the_order_of_the_prompts(make_model, make_prompt, make_features):
    model = make_model()
    prompts = [make_prompt(i, [[2, 3], [1, 2, 3]], before=9 - 2 * i) for i in range(4)]
    features = [make_features(i) for i in range(4)]
    found = score_options(model, prompts, features, batch_size=3)
    for i in range(4):
        [single] = score_options(model, [prompts[i]], [features[i]])
        assert [len(scores) for scores in found[i]] == [2, 3]
        torch.testing.assert_close(found[i], single, rtol=0, atol=1e-6)


def test_progress_counts_prompts(make_model, make_prompt, make_features):
    done: list[int] = []
    prompts = [make_prompt(i, [[1, 1]]) for i in range(5)]
    features = [make_features(i) for i in range(5)]
    score_options(make_model(), prompts, features, batch_size=2, progress=done.append)
    assert done == [2, 4, 5]


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_left_as_it_was(training, make_model, make_prompt, make_features):
    model = make_model().train(training)
    score_options(model, [make_prompt(0, [[1, 1]])], [make_features(0)])
    assert model.training is training


def test_nothing_to_score_gives_nothing(make_model):
    assert score_options(make_model(), [], []) == []
