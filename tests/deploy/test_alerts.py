"""Alerts and dashboard as Prometheus itself reads them; what is queried exists in the gateway."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from deployed import DEPLOY, ROOT, document, succeeds, tool

from serve.app import create_app
from serve.problems import STATUSES
from serve.settings import Settings

FOLDER = DEPLOY / "prometheus"
RULES: list[dict[str, Any]] = document(FOLDER / "alerts.yml")["groups"][0]["rules"]
DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/singlepass.json").read_text("utf-8"))
PROVISIONED = DEPLOY / "grafana" / "provisioning"


def panels() -> list[dict[str, Any]]:
    """The panels that show something."""
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def test_prometheus_accepts_config_and_rules() -> None:
    said = succeeds(tool("promtool"), "check", "config", FOLDER / "prometheus.yml")
    assert f"{len(RULES)} rules found" in said


def test_each_alert_fires_when_it_should_and_not_else() -> None:
    succeeds(tool("promtool"), "test", "rules", FOLDER / "alerts_test.yml")


def test_every_alert_is_tested_both_ways() -> None:
    cases = [
        case
        for group in document(FOLDER / "alerts_test.yml")["tests"]
        for case in group["alert_rule_test"]
    ]
    fired = {case["alertname"] for case in cases if "exp_alerts" in case}
    silent = {case["alertname"] for case in cases if "exp_alerts" not in case}
    assert fired == silent == {rule["alert"] for rule in RULES}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_the_operators_page_says_what_to_do(rule: dict[str, Any]) -> None:
    page, anchor = rule["annotations"]["runbook"].split("#")
    headings = re.findall(r"^#+ (.+)$", (ROOT / page).read_text("utf-8"), re.MULTILINE)
    assert anchor == rule["alert"].lower()
    assert rule["alert"] in headings
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"]["summary"]


def test_the_operators_page_knows_no_alert_that_is_gone() -> None:
    text = (ROOT / "docs" / "operations.md").read_text("utf-8")
    _, _, rest = text.partition("\n## When an alert fires\n")
    section = rest.partition("\n## ")[0]
    assert re.findall(r"^### (\w+)$", section, re.MULTILINE) == [rule["alert"] for rule in RULES]


def test_the_reasons_and_routes_that_are_asked_for_are_the_gateways() -> None:
    expressions = [rule["expr"] for rule in RULES]
    expressions += [target["expr"] for panel in panels() for target in panel["targets"]]
    asked = {"reason": set[str](), "route": set[str]()}
    for label, values in re.findall(r'(reason|route)=~?"([^"]+)"', " ".join(expressions)):
        asked[label] |= set(values.split("|"))
    assert len(asked["reason"]) > 3
    assert asked["reason"] <= {slug for _, slug in STATUSES.values()}
    assert len(asked["route"]) == 2
    assert asked["route"] <= create_app(Settings()).openapi()["paths"].keys()


def test_the_thresholds_follow_the_default_settings() -> None:
    (wait,) = [r["expr"] for r in RULES if r["alert"] == "QueueWaitNearDeadline"]
    (slow,) = [r["expr"] for r in RULES if r["alert"] == "Slow"]
    deadline_s = Settings().deadline_ms / 1e3
    assert float(wait.split(">")[1]) == 0.75 * deadline_s
    assert float(slow.split(">")[1]) == 0.1 * deadline_s


def test_every_panel_asks_the_provisioned_source_and_has_a_place_of_its_own() -> None:
    (source,) = document(PROVISIONED / "datasources" / "prometheus.yml")["datasources"]
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
        for target in panel.get("targets", []):
            assert target["datasource"]["uid"] == source["uid"]
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert len({panel["title"] for panel in panels()}) == len(panels())


def test_every_panel_says_what_it_shows() -> None:
    assert len(panels()) > 20
    assert all(panel["description"].endswith(".") for panel in panels())
    assert all(target["expr"] for panel in panels() for target in panel["targets"])


def test_the_dashboards_folder_is_the_one_that_is_mounted() -> None:
    (provider,) = document(PROVISIONED / "dashboards" / "singlepass.yml")["providers"]
    mounts = document(ROOT / "docker-compose.yml")["services"]["grafana"]["volumes"]
    assert f"./deploy/grafana/dashboards:{provider['options']['path']}:ro" in mounts
    assert Path(DEPLOY / "grafana" / "dashboards" / "singlepass.json").is_file()
