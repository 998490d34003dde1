"""What waits is taken together, and nothing waits for long."""

from __future__ import annotations

import asyncio

import pytest
import torch
from torch import Tensor

from topa.answer import Topa
from topa.serve import engine as engine_module
from topa.serve.engine import Engine
from topa.serve.metrics import Metrics
from topa.serve.writing import Sampling

CHOICES = [("What is it?", ["a cat", "a cup of coffee"])]
LONG = Sampling(60, no_repeat=0)


@pytest.fixture
def features(topa: Topa) -> Tensor:
    """Of a video of three frames."""
    return topa.encoder.encode_text(["a cat", "a dog", "a cup"])


class Asking:
    """Requests to an engine, and after how many tokens of an answer each was answered."""

    def __init__(self, topa: Topa, features: Tensor, rows: int = 16):
        self.metrics = Metrics()
        self.engine = Engine(topa, self.metrics, rows)
        self.features = features
        self.prompt = topa.builder.open("What happens?")
        self.tokens = 0
        self.ended_at: list[int] = []
        self.shares: list[list[list[float]]] = []

    async def write(self) -> None:
        async for _ in self.engine.write("a", self.features, self.prompt, [LONG]):
            self.tokens += 1

    async def score(self) -> None:
        self.shares += [await self.engine.score("a", self.features, CHOICES, "likelihood")]
        self.ended_at.append(self.tokens)

    async def score_after(self, *tokens: int) -> None:
        """Let an answer be written, ask with options after so many tokens each."""
        writing = asyncio.create_task(self.write())
        asked = []
        for count in tokens:
            while self.tokens < count:
                await asyncio.sleep(0.001)
            asked.append(asyncio.create_task(self.score()))
        await asyncio.gather(writing, *asked)
        await self.engine.close()

    def batches(self) -> tuple[float, float]:
        """Return how many batches of options there were, and how many questions in all."""
        [found] = self.metrics.rows.collect()
        values = {
            sample.name: sample.value
            for sample in found.samples
            if sample.labels.get("work") == "score"
        }
        return values["topa_batch_rows_count"], values["topa_batch_rows_sum"]


def test_options_wait_for_company_while_an_answer_is_written(topa, features):
    asking = Asking(topa, features)
    asyncio.run(asking.score_after(2, 5, 8))
    assert asking.tokens == LONG.max_tokens
    assert asking.batches() == (1, 3)
    alone = topa.score([CHOICES], [features], method="likelihood")[0][0].softmax(-1)
    for [shares] in asking.shares:
        torch.testing.assert_close(torch.tensor(shares), alone, rtol=1e-4, atol=1e-5)


def test_options_do_not_wait_for_an_answer_s_end(topa, features):
    asking = Asking(topa, features)
    asyncio.run(asking.score_after(2))
    [ended] = asking.ended_at
    # The token at hand when it came, those it has patience for, and one that is on its way.
    assert ended <= 2 + engine_module._PATIENCE + 3 < LONG.max_tokens


def test_enough_options_do_not_wait(topa, features):
    asking = Asking(topa, features, rows=4)
    asyncio.run(asking.score_after(2, 2))
    assert asking.batches() == (1, 2)
    assert max(asking.ended_at) <= 2 + 3 < 2 + engine_module._PATIENCE


def test_options_alone_are_scored_at_once(topa, features):
    asking = Asking(topa, features)

    async def ask() -> None:
        await asking.score()
        await asking.engine.close()

    asyncio.run(ask())
    assert asking.batches() == (1, 1)


def test_a_failing_batch_fails_its_requests_alone(topa, features):
    asking = Asking(topa, features)

    async def ask() -> None:
        wrong = features[:, :-1]
        with pytest.raises(RuntimeError, match="383"):
            await asking.engine.score("b", wrong, CHOICES, "likelihood")
        await asking.score()
        await asking.engine.close()

    asyncio.run(ask())
    assert len(asking.shares) == 1
