"""Requests made up from the OpenAPI document: the server keeps to it."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, given, settings

pytest.importorskip("schemathesis", reason="needs the extra dev")

import schemathesis
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
]
OPERATIONS = 8


@pytest.fixture(scope="module")
def operations(address):
    document = schemathesis.openapi.from_url(f"{address}/openapi.json")
    return [found.ok() for found in document.get_all_operations()]


@pytest.mark.slow
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize("number", range(OPERATIONS))
def test_every_response_is_one_of_the_document(number, mode, operations):
    assert len(operations) == OPERATIONS

    @given(case=operations[number].as_strategy(generation_mode=mode))
    @settings(
        max_examples=20,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case):
        case.call_and_validate(checks=CHECKS, timeout=60)

    if mode is GenerationMode.NEGATIVE and not operations[number].body:
        pytest.skip("takes nothing that could be wrong")
    ask()
