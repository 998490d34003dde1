"""Runs against a server that misbehaves: nothing lost, nothing twice, every token counted."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path

import pytest
from endpoint import Endpoint, make_draft

from topa.errors import ConfigError
from topa.tideo.composition import Recipe
from topa.tideo.generate import Run
from topa.tideo.journal import Journal, list_journals, read_rows, read_state
from topa.tideo.pace import Pace
from topa.tideo.prompts import PromptStyle
from topa.tideo.results import read_failures, read_results, write_results

RECIPE = Recipe("model", PromptStyle(examples=0))
QUICK = Pace(concurrency=16, first_wait=0.01, price_in=1.0, price_out=2.0)


def assert_each_once(out: Path, seeds: list) -> None:
    """Every seed has exactly one finished line, and one Tideo."""
    __tracebackhide__ = True
    ended = Counter(
        row["key"] for path in list_journals(out) for row in read_rows(path) if row["t"] == "done"
    )
    assert ended == {RECIPE.key_of(seed): 1 for seed in seeds}
    assert sorted(tideo.seed for tideo in read_results(out)) == sorted(seed.text for seed in seeds)


def run_with_faults(out: Path, seeds: list, share: float, make_backend) -> tuple:
    with Endpoint(share, slow=6.0) as endpoint:
        status = Run(seeds, RECIPE, make_backend(endpoint, timeout=3.0), out, QUICK).execute()
    return status, endpoint


def check_faults(out: Path, seeds: list, status, endpoint: Endpoint) -> None:
    ledger, served = status.ledger, endpoint.outcomes
    assert (status.done, status.failed, status.stopped) == (len(seeds), 0, None)
    assert_each_once(out, seeds)
    assert ledger.requests == endpoint.requests
    assert ledger.answered == served["answered"]
    assert ledger.faults["429"] == served["429"]
    assert ledger.faults["500"] == served["500"]
    broken = served["cut"] + served["half"] + served["slow"]
    assert ledger.faults.total() - ledger.faults["429"] - ledger.faults["500"] == broken
    assert [ledger.prompt_tokens, ledger.completion_tokens] == endpoint.tokens
    assert ledger.cost == pytest.approx((endpoint.tokens[0] + 2 * endpoint.tokens[1]) / 1e6)
    assert (ledger.unknown, ledger.estimated) == (0, 0)
    assert ledger.open_cost == pytest.approx(0, abs=1e-9)
    assert set(endpoint.whole.values()) == {1}  # no good reply was asked for twice
    read = read_state(out).ledger
    assert read.faults == ledger.faults
    assert (read.requests, read.answered) == (ledger.requests, ledger.answered)
    assert read.cost == pytest.approx(ledger.cost)


def test_faults_are_survived_and_counted(tmp_path, make_backend, make_seeds):
    seeds = make_seeds(80)
    status, endpoint = run_with_faults(tmp_path, seeds, 0.3, make_backend)
    assert endpoint.requests > len(seeds)
    check_faults(tmp_path, seeds, status, endpoint)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_2000_seeds_at_30_percent_faults(tmp_path, make_backend, make_seeds):
    seeds = make_seeds(2000)
    status, endpoint = run_with_faults(tmp_path, seeds, 0.3, make_backend)
    assert len(endpoint.outcomes) == 6
    check_faults(tmp_path, seeds, status, endpoint)


CHILD = """
import sys
from topa.tideo.backends import EndpointBackend, EndpointSettings
from topa.tideo.composition import Recipe
from topa.tideo.generate import Run
from topa.tideo.pace import Pace
from topa.tideo.prompts import PromptStyle
from topa.tideo.seeds import Seed
url, out, count = sys.argv[1:]
seeds = [Seed("webvid", f"clip number {i}") for i in range(int(count))]
backend = EndpointBackend(EndpointSettings("model", url, timeout=20))
print("ready", flush=True)
Run(seeds, Recipe("model", PromptStyle(examples=0)), backend, out,
    Pace(concurrency=8, first_wait=0.01)).execute()
"""


def kill_and_continue(tmp_path: Path, make_seeds, count: int, kills: int) -> None:
    seeds, out = make_seeds(count), tmp_path / "run"
    rng = random.Random(5)
    with Endpoint(0.1, delay=0.02, slow=0.3) as endpoint:
        command = [sys.executable, "-c", CHILD, endpoint.url, str(out), str(count)]
        killed = 0
        for attempt in range(kills + 1):
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            if attempt < kills:
                time.sleep(rng.uniform(0.05, 0.6))
                killed += process.poll() is None
                process.send_signal(signal.SIGKILL)
            process.wait(240)
    assert killed > 0
    assert process.returncode == 0
    assert_each_once(out, seeds)
    ledger = read_state(out).ledger
    # A request is in the journal before it leaves, so nothing the server got is missing.
    assert ledger.requests >= endpoint.requests
    assert ledger.unknown <= 8 * killed
    served = endpoint.outcomes["answered"] + endpoint.outcomes["slow"]  # slow ones arrive here
    lost = served - ledger.answered
    assert 0 <= lost <= ledger.unknown
    # What was paid twice was on its way at a kill, and nothing else.
    assert sum(times - 1 for times in endpoint.whole.values()) <= ledger.unknown


def test_a_killed_run_goes_on(tmp_path, make_seeds):
    kill_and_continue(tmp_path, make_seeds, 60, 1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_20_kills_at_random_moments(tmp_path, make_seeds):
    kill_and_continue(tmp_path, make_seeds, 800, 20)


def test_a_finished_run_asks_for_nothing(tmp_path, make_backend, make_seeds):
    with Endpoint() as endpoint:
        for done in (6, 6, 9):
            status = Run(
                make_seeds(done), RECIPE, make_backend(endpoint), tmp_path, QUICK
            ).execute()
            assert status.done == done
            assert endpoint.requests == done


def test_another_model_or_prompt_is_another_run(tmp_path, make_backend, make_seeds):
    seed = make_seeds(1)[0]
    others = [
        Recipe("b", RECIPE.style),
        Recipe("model", PromptStyle(mode="two")),
        Recipe("model", PromptStyle(examples=0, frames=(5, 6))),
    ]
    keys = {recipe.key_of(seed) for recipe in (RECIPE, *others)}
    assert len(keys) == 4
    assert RECIPE.key_of(seed) == Recipe("model", PromptStyle(examples=0)).key_of(seed)


def test_a_wrong_reply_is_corrected_once_then_kept(tmp_path, make_backend, make_seeds):
    seeds = make_seeds(2)
    with Endpoint(lambda seed, times: "wrong-schema" if "0" in seed else None) as endpoint:
        endpoint.keep = 9
        status = Run(seeds, RECIPE, make_backend(endpoint), tmp_path, QUICK).execute()
    assert (status.done, status.failed) == (1, 1)
    assert endpoint.requests == 3
    last = [body for body in endpoint.bodies if len(body["messages"]) > 2]
    assert len(last) == 1
    assert "a list is needed" in last[0]["messages"][-1]["content"]
    assert last[0]["messages"][-2]["role"] == "assistant"
    (failure,) = read_failures(tmp_path)
    assert failure["text"] == "clip number 0"
    assert "a list is needed" in failure["reason"]
    assert len(failure["replies"]) == 2
    assert [status.ledger.prompt_tokens, status.ledger.completion_tokens] == endpoint.tokens


def test_failed_seeds_are_taken_up_only_on_demand(tmp_path, make_backend, make_seeds):
    seeds = make_seeds(3)
    with Endpoint(lambda *_: "wrong-json") as endpoint:
        Run(seeds, RECIPE, make_backend(endpoint), tmp_path, QUICK).execute()
    with Endpoint() as endpoint:
        run = Run(seeds, RECIPE, make_backend(endpoint), tmp_path, QUICK)
        assert (run.execute().failed, endpoint.requests) == (3, 0)
        run = Run(seeds, RECIPE, make_backend(endpoint), tmp_path, QUICK, retry_failed=True)
        assert (run.execute().done, endpoint.requests) == (3, 3)
    assert read_failures(tmp_path) == []


def test_a_server_that_is_down_stops_the_run_and_loses_nothing(tmp_path, make_backend, make_seeds):
    seeds = make_seeds(40)
    pace = Pace(concurrency=2, attempts=2, first_wait=0.001)
    with Endpoint(lambda *_: "503") as endpoint:
        status = Run(seeds, RECIPE, make_backend(endpoint), tmp_path, pace).execute()
    assert status.stopped is not None
    assert "does not answer" in status.stopped
    assert endpoint.requests < 20
    with Endpoint() as endpoint:
        status = Run(seeds, RECIPE, make_backend(endpoint), tmp_path, pace).execute()
    assert status.done == 40


@pytest.mark.parametrize("code", ["401", "404"])
def test_a_server_that_refuses_stops_the_run_at_once(tmp_path, make_backend, make_seeds, code):
    with Endpoint(lambda *_: code) as endpoint:
        run = Run(make_seeds(30), RECIPE, make_backend(endpoint), tmp_path, QUICK)
        status = run.execute()
    assert status.stopped is not None
    assert "refuses" in status.stopped
    assert (status.done, status.failed) == (0, 0)
    assert endpoint.requests <= QUICK.concurrency


def test_the_budget_is_never_exceeded(tmp_path, make_backend, make_seeds):
    seeds = make_seeds(60)
    recipe = Recipe("model", PromptStyle(examples=0), max_tokens=1000)
    with Endpoint() as endpoint:
        pace = Pace(concurrency=16, budget=0.01, price_in=1.0, price_out=1.0)
        status = Run(seeds, recipe, make_backend(endpoint), tmp_path, pace).execute()
        assert status.stopped == "budget"
        assert 0 < status.done < 60
        assert sum(endpoint.tokens) / 1e6 == pytest.approx(status.ledger.cost)
        assert status.ledger.cost <= 0.01
        again = Run(seeds, recipe, make_backend(endpoint), tmp_path, pace).execute()
        assert again.ledger.cost <= 0.01
        more = Pace(concurrency=16, budget=1.0, price_in=1.0, price_out=1.0)
        assert Run(seeds, recipe, make_backend(endpoint), tmp_path, more).execute().done == 60


def test_requests_at_once_fall_under_429(tmp_path, make_backend, make_seeds):
    """A server that takes four at once and refuses the fifth is not hammered."""
    with Endpoint(delay=0.01) as endpoint:
        endpoint.faults = lambda *_: "429" if endpoint.active > 4 else None
        pace = Pace(concurrency=64, first_wait=0.01, attempts=50)
        status = Run(make_seeds(150), RECIPE, make_backend(endpoint), tmp_path, pace).execute()
    assert status.done == 150
    assert status.ledger.faults["429"] < 150


def test_the_rate_limit_is_kept(tmp_path, make_backend, make_seeds):
    with Endpoint() as endpoint:
        pace = Pace(concurrency=16, requests_per_minute=600)
        begun = time.monotonic()
        Run(make_seeds(20), RECIPE, make_backend(endpoint), tmp_path, pace).execute()
    # A bucket of ten, then ten a second.
    assert time.monotonic() - begun >= 0.9


def test_two_steps_keep_the_story_that_was_paid_for(tmp_path, make_backend, make_seeds):
    recipe = Recipe("model", PromptStyle(mode="two", examples=0))
    seeds = make_seeds(4)

    def reply(body: dict) -> str:
        if "response_format" not in body:
            return "A story of a cup."
        assert "A story of a cup." in body["messages"][-1]["content"]
        return json.dumps(make_draft("x"))

    with Endpoint(lambda seed, times: "401" if times == 2 else None, reply=reply) as endpoint:
        pace = Pace(concurrency=1)
        run = Run(seeds, recipe, make_backend(endpoint), tmp_path, pace)
        assert run.execute().done == 0
        assert endpoint.requests == 2
        endpoint.faults = 0.0
        status = Run(seeds, recipe, make_backend(endpoint), tmp_path, pace).execute()
    assert status.done == 4
    assert endpoint.requests == 2 + 7  # the first story is not asked for again


def test_sigterm_waits_for_what_is_on_its_way(tmp_path, make_backend, make_seeds):
    with Endpoint(delay=0.2) as endpoint:

        def stop() -> None:
            while not endpoint.requests:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)

        threading.Thread(target=stop).start()
        run = Run(make_seeds(200), RECIPE, make_backend(endpoint), tmp_path, QUICK)
        status = run.execute()
    assert status.stopped == "interrupted"
    assert 0 < status.done < 200
    assert status.ledger.requests == status.ledger.answered == endpoint.requests


def test_a_second_run_in_the_same_folder_is_refused(tmp_path, make_backend, make_seeds):
    journal = Journal(tmp_path / "journal" / "main.jsonl")
    with Endpoint() as endpoint:
        with pytest.raises(ConfigError, match="another run"):
            Run(make_seeds(1), RECIPE, make_backend(endpoint), tmp_path, QUICK).execute()
        journal.close()
        assert Run(make_seeds(1), RECIPE, make_backend(endpoint), tmp_path, QUICK).execute().done


def test_a_journal_reaches_the_disk_on_macos_too(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "fdatasync")  # as there
    journal = Journal(tmp_path / "main.jsonl")
    journal.append({"t": "sent"})
    journal.close()
    assert (tmp_path / "main.jsonl").read_text() == '{"t": "sent"}\n'


def test_a_torn_line_is_named_and_costs_one_seed_only(tmp_path, make_backend, make_seeds):
    seeds = make_seeds(5)
    path = tmp_path / "journal" / "main.jsonl"
    with Endpoint() as endpoint:
        Run(seeds, RECIPE, make_backend(endpoint), tmp_path, QUICK).execute()
        path.write_bytes(path.read_bytes()[:-40])
        assert len(read_state(tmp_path).torn) == 1
        status = Run(seeds, RECIPE, make_backend(endpoint), tmp_path, QUICK).execute()
    assert status.done == 5
    assert endpoint.requests == 6
    assert len(read_state(tmp_path).done) == 5
    assert write_results(tmp_path, {}) == 5


def test_the_server_of_the_tests_counts(make_backend):
    with Endpoint() as endpoint:
        url = endpoint.url.removesuffix("v1") + "count"
        assert json.load(urllib.request.urlopen(url))["requests"] == 0


def test_a_key_is_never_written(tmp_path, monkeypatch, make_backend, make_seeds):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    with Endpoint(lambda seed, times: "401" if "1" in seed else None) as endpoint:
        endpoint.keep = 2
        Run(make_seeds(2), RECIPE, make_backend(endpoint), tmp_path, QUICK).execute()
    assert endpoint.headers[0]["Authorization"] == "Bearer sk-very-secret"
    assert endpoint.headers[0]["Idempotency-Key"].endswith("-0")
    write_results(tmp_path, {})
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"sk-very-secret" not in path.read_bytes()
