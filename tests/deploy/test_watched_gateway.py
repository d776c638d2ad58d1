"""Every expression of alerts and dashboard, evaluated by Prometheus over a real gateway."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from deployed import DEPLOY, ROOT, document, tool
from watched_gateway import ask, eventually, gateway, prometheus

RULES = document(DEPLOY / "prometheus" / "alerts.yml")["groups"][0]["rules"]
DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/singlepass.json").read_text("utf-8"))
TRITONS = "nv_"  # what only Triton's own metrics can answer
EXPRESSIONS = [t["expr"] for panel in DASHBOARD["panels"] for t in panel.get("targets", [])]
PROMPT = "a small red circle on the left"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the shipped version alone."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "shapes").mkdir()
    for name in ("1", "config.pbtxt"):
        (folder / "shapes" / name).symlink_to(ROOT / "model_repository" / "shapes" / name)
    return folder


@pytest.fixture(scope="module")
def watched(
    repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[httpx.Client, str]]:
    """Prometheus, and the address of the gateway that it has watched for some requests."""
    program = tool("prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    with gateway(repository) as url, prometheus(program, folder, url) as client:
        eventually(lambda: bool(ask(client, 'up{job="gateway"} == 1')), 20, "no scrape")
        for _ in range(3):
            traffic(url)
            scrapes = int(ask(client, 'scrape_samples_scraped{job="gateway"}')[0]["value"][0])
            eventually(lambda old=scrapes: later(client, old), 10, "no further scrape")
        yield client, url


def traffic(url: str) -> None:
    """Pictures, one of them twice, a request that is refused, and one that needs no picture."""
    body = {"prompt": PROMPT, "seed": 1}
    with httpx.Client(base_url=url) as client:
        first = client.post("/generate", json=body)
        assert first.status_code == 200
        known = {"If-None-Match": first.headers["etag"]}
        assert client.post("/generate", json=body, headers=known).status_code == 304
        assert client.post("/generate", json=body | {"steps": 4}).status_code == 422
        assert client.post("/v1/images/generations", json=body).status_code == 200


def later(client: httpx.Client, second: int) -> bool:
    """Whether there was a scrape after that second."""
    return bool(ask(client, f'timestamp(up{{job="gateway"}}) > {second + 1}'))


def filled(expr: str) -> str:
    """An expression as Grafana sends it."""
    return expr.replace("$__rate_interval", "30s").replace("$model", ".*")


@pytest.mark.parametrize("expr", EXPRESSIONS)
def test_prometheus_answers_every_panel(watched: tuple[httpx.Client, str], expr: str) -> None:
    client, _ = watched
    found = ask(client, filled(expr))
    assert bool(found) == (TRITONS not in expr)


def test_the_answers_are_true(watched: tuple[httpx.Client, str]) -> None:
    client, _ = watched

    def value(expr: str) -> float:
        return float(ask(client, expr)[0]["value"][1])

    assert value("sum(singlepass_pictures_total)") == 6
    assert value('sum(singlepass_http_requests_total{route="/generate", status="200"})') == 3
    assert value('singlepass_refused_total{reason="invalid-parameters"}') == 3
    assert value('singlepass_reused_total{how="etag"}') == 3
    assert value("singlepass_model_ready") == 1
    infer = 'singlepass_stage_duration_seconds_sum{stage="infer"}'
    assert 0 < value(infer) < value("sum(singlepass_http_request_duration_seconds_sum)")


def test_what_is_asked_for_is_what_the_gateway_tells(watched: tuple[httpx.Client, str]) -> None:
    _, url = watched
    told = set(re.findall(r"^(\w+)[ {]", httpx.get(f"{url}/metrics").text, re.MULTILINE))
    asked = set()
    for expr in [*EXPRESSIONS, *(rule["expr"] for rule in RULES)]:
        asked |= set(re.findall(r"\b(?:singlepass|process)_\w+", expr))
    assert len(asked) > 15
    assert asked <= told


def test_every_rule_is_evaluated_and_only_triton_is_missed(
    watched: tuple[httpx.Client, str],
) -> None:
    client, _ = watched

    def rules() -> dict[str, dict[str, str]]:
        (group,) = client.get("/api/v1/rules").json()["data"]["groups"]
        return {rule["name"]: rule for rule in group["rules"]}

    eventually(lambda: rules()["TritonDown"]["state"] == "pending", 10, rules())
    found = rules()
    assert {name: rule["health"] for name, rule in found.items()} == dict.fromkeys(found, "ok")
    states = {name: rule["state"] for name, rule in found.items() if name != "TritonDown"}
    assert states == dict.fromkeys(states, "inactive")


def test_the_dashboard_offers_the_models(watched: tuple[httpx.Client, str]) -> None:
    client, _ = watched
    (chooser,) = DASHBOARD["templating"]["list"]
    metric, label = re.fullmatch(
        r"label_values\((\w+), (\w+)\)", chooser["query"]["query"]
    ).groups()
    answer = client.get(f"/api/v1/label/{label}/values", params={"match[]": metric})
    assert answer.json()["data"] == ["shapes"]


def test_a_gateway_that_dies_is_noticed(repository: Path, tmp_path: Path) -> None:
    program = tool("prometheus")
    with gateway(repository) as url:
        dead = url
    with prometheus(program, tmp_path, dead) as client:
        eventually(
            lambda: bool(ask(client, 'ALERTS{alertname="GatewayDown", alertstate="pending"}')),
            20,
            "the alert is not pending",
        )
