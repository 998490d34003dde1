"""The losses of pre-alignment, from the log-probabilities of target tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from topa.data.collate import Batch
from topa.model.scoring import span_means


@dataclass
class Losses:
    """Sums over a batch, to be divided by global counts.

    Attributes:
        nll: Summed negative log-likelihood of plain label tokens.
        tokens: Number of plain label tokens.
        contrast: Summed cross-entropy of right options among their options.
        questions: Number of questions with options.
        right: Questions whose right option scores highest (blind ones not counted).
        seen: Questions with a visible video.
    """

    nll: Tensor
    tokens: Tensor
    contrast: Tensor
    questions: Tensor
    right: Tensor
    seen: Tensor


def compute_losses(
    log_probs: Tensor, batch: Batch, blind: Tensor, sharpness: float = 1.0
) -> Losses:
    """Sum the two losses over a batch.

    A question with options is learned as a choice: softmax over the options' mean token
    log-likelihoods (times `sharpness`), cross-entropy to the right one; for a blind prompt
    to the uniform distribution, so that questions are not answered from memory.

    Args:
        log_probs: [N] log-probability of each target token.
        batch: The batch they belong to.
        blind: [B] True where the prompt's video is masked.
        sharpness: Factor of the likelihoods before the softmax.
    """
    plain = batch.span_groups[batch.target_spans] < 0
    tokens = plain.sum()
    nll = -(log_probs * plain).sum()
    groups = len(batch.group_answers)
    in_group = batch.span_groups >= 0
    if groups == 0:
        zero = nll.new_zeros(())
        return Losses(nll, tokens, zero, zero.long(), zero.long(), zero.long())
    scores = sharpness * span_means(log_probs, batch.target_spans, len(batch.span_groups))
    owner = batch.span_groups.clamp(min=0)
    chosen, best = _log_softmax_within(scores, owner, in_group, groups)
    span_rows = torch.zeros_like(batch.span_groups)
    span_rows[batch.target_spans] = batch.target_rows
    # No indexing by a mask: its size would have to be known, which makes a GPU step wait.
    hidden = (blind[span_rows] & in_group).to(scores.dtype)
    group_blind = scores.new_zeros(groups).index_add_(0, owner, hidden) > 0
    sizes = scores.new_zeros(groups).index_add_(0, owner, in_group.to(scores.dtype))
    uniform = -scores.new_zeros(groups).index_add_(0, owner, chosen * in_group) / sizes
    # The uniform target's cross-entropy is at least log(size): only the excess is a loss.
    contrast = torch.where(group_blind, uniform - sizes.log(), -chosen[batch.group_answers])

    right = (scores[batch.group_answers] >= best) & ~group_blind
    return Losses(
        nll,
        tokens,
        contrast.sum(),
        torch.tensor(groups, device=nll.device),
        right.sum(),
        (~group_blind).sum(),
    )


def _log_softmax_within(
    scores: Tensor, owner: Tensor, in_group: Tensor, groups: int
) -> tuple[Tensor, Tensor]:
    """Return the log-softmax of scores [M] within each question, and each one's best score [Q].

    Args:
        scores: [M] score of each span.
        owner: [M] question of each span.
        in_group: [M] False where a span belongs to none.
        groups: Q.
    """
    best = scores.new_full((groups,), -torch.inf).scatter_reduce(
        0, owner, torch.where(in_group, scores, -torch.inf).detach(), "amax"
    )
    # Less the best of its question, so that no exponential overflows and not all vanish.
    weights = torch.where(in_group, scores - best[owner], -torch.inf).exp()
    normaliser = best + scores.new_zeros(groups).index_add_(0, owner, weights).log()
    return scores - normaliser[owner], best
