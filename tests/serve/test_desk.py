"""What the page does, without the page."""

from __future__ import annotations

import asyncio

import pytest

from topa.serve.desk import merge


@pytest.mark.parametrize("fails", [False, True])
def test_streams_are_closed_when_one_fails_or_nobody_reads_on(fails):
    closed = []

    async def count(name):
        try:
            yield name
            if fails and name == "a":
                raise KeyError
            await asyncio.sleep(60)
            yield "too late"
        finally:
            closed.append(name)

    async def read():
        texts = merge(count("a"), count("b"))
        if fails:
            with pytest.raises(KeyError):
                [latest async for latest in texts]
        else:
            while await anext(texts) != ["a", "b"]:
                pass
            await texts.aclose()
        assert sorted(closed) == ["a", "b"]

    asyncio.run(asyncio.wait_for(read(), 10))
