"""Scores of options: means per token, in the order asked, one pass however many options."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from topa.data.collate import collate
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
    assert (batch, length) == (1, len(prompt))  # and no padding


def test_prompts_of_similar_length_share_a_batch(passes, make_prompt, make_features):
    model, seen = passes
    lengths = [30, 2, 31, 3]
    prompts = [make_prompt(i, [[2, 2]], before=n) for i, n in enumerate(lengths)]
    score_options(model, prompts, [make_features(i) for i in range(4)], batch_size=2)
    # 4 slots, 2 tokens of the question and 2 x 2 of options after those before the video.
    assert seen == [(1, 2 + 3 + 2 * 10), (1, 30 + 31 + 2 * 10)]


def test_prompts_that_begin_alike_share_their_beginning(passes, make_prompt, make_features):
    model, seen = passes
    # The same draws of the text before the video; then other options.
    prompts = [make_prompt(0, [lengths], before=20) for lengths in ([2, 2], [1, 3], [4])]
    score_options(model, prompts, [make_features(i) for i in range(3)], batch_size=3)
    assert seen == [(1, 20 + sum(len(prompt) - 20 for prompt in prompts))]


def test_gradients_of_a_packed_pass_are_those_of_padded_rows(
    make_model, make_prompt, make_features
):
    model = make_model().double()
    prompts = [
        make_prompt(seed, [[2, 3]], before=before) for seed, before in ((0, 6), (0, 6), (1, 2))
    ]
    packed = collate(prompts, [make_features(i, 4 - i) for i in range(3)], 4)
    assert packed.tokens is not None
    assert len(packed.tokens) == sum(map(len, prompts)) - 6
    found = []
    for batch in (packed, replace(packed, tokens=None, places=None)):
        model.zero_grad()
        log_probs = model.target_log_probs(batch)
        log_probs.square().sum().backward()
        gradients = [p.grad.flatten() for _, p in model.trainable_parameters()]
        found.append((log_probs.detach(), torch.cat(gradients)))
    (ours, of_ours), (rows, of_rows) = found
    # The logits are float32 whatever the model is.
    torch.testing.assert_close(ours, rows, rtol=1e-6, atol=1e-6)
    assert of_rows.norm() > 0
    assert (of_ours - of_rows).norm() / of_rows.norm() < 1e-6


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


def test_the_mode_is_left_as_it_was_by_an_error(make_model, make_prompt, make_features):
    model = make_model().train()

    def stop(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_options(model, [make_prompt(0, [[2]])], [make_features(0)], progress=stop)
    assert model.training


def test_nothing_to_score_gives_nothing(make_model):
    assert score_options(make_model(), [], []) == []
