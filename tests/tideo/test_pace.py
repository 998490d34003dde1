"""Requests at once, money, waiting."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from topa.tideo.backends import BusyFault, Call
from topa.tideo.pace import Backoff, Gate, Pace, Purse


def drive(gate: Gate, *, congested: bool, times: int) -> None:
    async def go() -> None:
        for _ in range(times):
            gate.leave(await gate.enter(), congested=congested, answered=not congested)

    asyncio.run(go())


def test_the_gate_opens_with_replies_and_halves_under_congestion():
    gate = Gate(64)
    drive(gate, congested=False, times=100)
    assert gate.limit == 64
    drive(gate, congested=True, times=8)  # an eighth of 64
    assert gate.limit == 32
    drive(gate, congested=True, times=40)
    assert 1 <= gate.limit < 4
    drive(gate, congested=False, times=5000)
    assert gate.limit == 64


def test_stray_faults_do_not_close_the_gate():
    gate = Gate(64, start=64)
    for _ in range(50):
        drive(gate, congested=True, times=1)
        drive(gate, congested=False, times=12)
    assert gate.limit == 64


def test_a_storm_halves_the_gate_once():
    async def storm() -> Gate:
        gate = Gate(64, start=64)
        places = [await gate.enter() for _ in range(64)]
        for place in places:
            gate.leave(place, congested=True, answered=False)
        return gate

    assert asyncio.run(storm()).limit == 32


def test_no_more_pass_than_the_limit():
    async def crowd() -> int:
        gate, inside, most = Gate(5), 0, 0

        async def one() -> None:
            nonlocal inside, most
            place = await gate.enter()
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1
            gate.leave(place)

        await asyncio.gather(*(one() for _ in range(200)))
        return most

    assert asyncio.run(crowd()) == 5


def test_a_purse_waits_for_money_that_comes_back_and_refuses_what_never_fits():
    async def spend() -> list[bool]:
        purse = Purse(1.0)
        assert await purse.reserve(0.8)
        second = asyncio.create_task(purse.reserve(0.8))
        await asyncio.sleep(0)
        assert not second.done()
        await purse.settle(0.8, 0.1)
        got = await second
        await purse.settle(0.8, 0.1)
        return [got, await purse.reserve(0.9)]

    assert asyncio.run(spend()) == [True, False]


@pytest.mark.parametrize("attempt", [1, 3, 30])
def test_back_off_grows_is_bounded_and_honours_the_server(attempt):
    def wait(error: Exception) -> list[float]:
        outcome = SimpleNamespace(exception=lambda: error)
        state = SimpleNamespace(outcome=outcome, attempt_number=attempt)
        return [Backoff(0.5, 60)(state) for _ in range(200)]

    bound = min(60, 0.5 * 2 ** (attempt - 1))
    waits = wait(BusyFault("429"))
    assert 0 <= min(waits) < max(waits) <= bound
    assert len(set(waits)) > 100  # jitter
    assert min(wait(BusyFault("429", wait=7.0))) >= 7
    assert set(wait(BusyFault("format"))) == {0.0}


def test_the_most_a_call_may_cost():
    pace = Pace(price_in=3.0, price_out=10.0)
    call = Call([{"role": "user", "content": "x" * 300}], max_tokens=1000)
    assert pace.most_of(call) == pytest.approx((100 * 3 + 1000 * 10) / 1e6)
