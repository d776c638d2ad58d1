"""Thousands of requests made up from the OpenAPI document, at a real gateway process."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from test_log_process import gateway

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
)


def conformed(url: str, folder: Path, examples: int, seed: int) -> int:
    """How many requests were made; fails with the report if an answer was not as documented."""
    command = [Path(sys.executable).with_name("schemathesis"), "--no-color", "run"]
    options = {
        "--checks": ",".join(CHECKS),
        "--phases": "examples,coverage,fuzzing",
        "--max-examples": str(examples),
        "--seed": str(seed),
        "--generation-database": "none",
    }
    listed = [part for pair in options.items() for part in pair]
    said = subprocess.run(
        [*command, f"{url}/openapi.json", *listed],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stdout[-6000:] + said.stderr
    return int(re.search(r"([\d,]+) generated", said.stdout)[1].replace(",", ""))


def test_answers_to_made_up_requests_are_as_documented(repository, tmp_path):
    with (tmp_path / "log").open("wb") as log, gateway(repository, log.fileno()) as client:
        assert conformed(str(client.base_url).rstrip("/"), tmp_path, 4, seed=1) > 200


@pytest.mark.slow
def test_five_thousand_made_up_requests_are_answered_as_documented(repository, tmp_path):
    with (tmp_path / "log").open("wb") as log, gateway(repository, log.fileno()) as client:
        assert conformed(str(client.base_url).rstrip("/"), tmp_path, 1500, seed=2) >= 5000
