"""Inputs that Schemathesis makes from the OpenAPI document, and whether that document is one."""

import copy
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode

from tests.figures import Figures
from tests.fuzz.conftest import Target
from tests.fuzz.judge import Judge

schemes: Any = schemathesis

_CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,"
    "response_headers_conformance,unsupported_method,ignored_auth,use_after_free"
)
"""Not among them: whether each input that fits the schema is taken (a cursor is a string, and not any string), whether
each that does not is refused (`"disabled": 0` is taken for `false`), and whether `Allow` is what the document says of
one template alone (`/agents/reload` is also the name of an agent)."""


def test_the_document_is_valid(target: Target) -> None:
    document = copy.deepcopy(target.document)
    # OpenAPI allows a relative URL here, its JSON Schema does not.
    flow = document["components"]["securitySchemes"]["OAuth2PasswordBearer"]["flows"]["password"]
    flow["tokenUrl"] = target.server.url + flow["tokenUrl"]
    schemes.openapi.from_dict(document).validate()
    document["paths"]["/livez"]["get"]["responses"] = ["none"]
    with pytest.raises(ValueError, match="is not of type"):
        schemes.openapi.from_dict(document).validate()


def test_every_failure_is_documented_in_its_shape(target: Target) -> None:
    for path, operations in target.document["paths"].items():
        for method, operation in operations.items():
            answers: dict[str, Any] = operation["responses"]
            wanted = {"400", "413", "415", "500", "503"} | ({"401", "429"} if "security" in operation else set[str]())
            assert answers.keys() >= wanted, f"{method} {path}"
            for status, answer in answers.items():
                if int(status) < 400 or (path in {"/health", "/readyz"} or "health-detailed" in path):
                    continue
                media_type = "application/json" if path.startswith("/v1/") else "application/problem+json"
                shape = "OpenAIError" if path.startswith("/v1/") else "Problem"
                schema = answer["content"][media_type]["schema"]
                assert schema == {"$ref": f"#/components/schemas/{shape}"}, f"{method} {path} {status}"
                assert status not in {"429", "503"} or "Retry-After" in answer["headers"]


def test_what_schemathesis_makes_of_it_is_answered_as_documented(target: Target) -> None:
    judge = Judge(target.document)
    schema = schemes.openapi.from_dict(target.document)
    for found in schema.get_all_operations():
        operation = found.ok()
        _try(operation, GenerationMode.POSITIVE, judge, target)
        # Whatever text stands in a path is right by its schema.
        if operation.body or operation.query:
            _try(operation, GenerationMode.NEGATIVE, judge, target)
    assert judge.statuses.keys() >= {200, 201, 404, 422}
    assert judge.statuses.total() > 200
    judge.check()


def _try(operation: Any, mode: GenerationMode, judge: Judge, target: Target) -> None:
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=5,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=checks,
    )
    def send(case: Any) -> None:
        reply = case.call(base_url=target.server.url, headers={"Authorization": f"Bearer {target.admin}"})
        method, path = str(reply.request.method), urlsplit(str(reply.request.url)).path
        kind = "".join(reply.headers.get("content-type", [""]))
        complaint = judge.complaint(method, path, reply.status_code, kind, reply.content)
        assert complaint is None, f"{complaint}: {method} {reply.request.url} {reply.request.body!r}"[:2000]

    send()


@pytest.mark.soak
@pytest.mark.parametrize("target", ["a server of its own, where users and keys are deleted"], indirect=True)
def test_twenty_thousand_inputs_of_schemathesis_are_answered_as_documented(
    target: Target, tmp_path: Path, figures: Figures
) -> None:
    figures.seed = seed = int(os.environ.get("FUZZ_SEED", time.time()))
    number = 0
    while number < 20_000:
        number += _run(target, seed, tmp_path)
        seed += 1
    figures.note(f"{number} inputs of Schemathesis", "all as documented", "all")


def _run(target: Target, seed: int, tmp_path: Path) -> int:
    """One run of Schemathesis over all its phases; gives how many inputs it sent."""
    command = [
        *(str(Path(sys.executable).parent / "schemathesis"), "run", target.server.url + "/openapi.json"),
        *("--phases", "examples,coverage,fuzzing,stateful", "--checks", _CHECKS),
        # One worker: up to CPython 3.11.7 two threads that parse source, as Hypothesis does, may raise SystemError.
        *("--max-examples", "200", "--max-time", "45", "--seed", str(seed), "--suppress-health-check", "all"),
        *("--header", f"Authorization: Bearer {target.admin}", "--no-color"),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    found = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert found, done.stdout[-2000:]
    print(f"\nschemathesis, seed {seed}: {found[0]}")
    return int(found[1])
