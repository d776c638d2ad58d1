"""docker-compose.yml: a valid Compose file, hardened, and in step with the gateway's settings."""

import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import container_file
import pytest
from deployed import DEPLOY, ROOT, document, missing, succeeds

from serve.settings import PREFIX, Settings

COMPOSE = document(ROOT / "docker-compose.yml")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
IMAGE = container_file.read(DEPLOY / "gateway" / "Dockerfile")
each_service = pytest.mark.parametrize("name", SERVICES)


def seconds(text: str) -> float:
    """A duration as Compose writes it, in one unit."""
    number, unit = re.fullmatch(r"(\d+)(s|m)", text).groups()
    return int(number) * {"s": 1, "m": 60}[unit]


def started(profile: str) -> dict[str, dict[str, Any]]:
    """The services of a profile."""
    return {n: s for n, s in SERVICES.items() if profile in s.get("profiles", [profile])}


def published(service: dict[str, Any]) -> list[str]:
    """What a service publishes, with the defaults of its variables."""
    return [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", port) for port in service.get("ports", [])]


@pytest.mark.parametrize("file", ["docker-compose.yml", "deploy/tensorrt/docker-compose.yml"])
def test_the_file_follows_the_compose_specification(file: str) -> None:
    if find_spec("check_jsonschema") is None:
        missing("check-jsonschema")
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    succeeds(*check, ROOT / file)


def test_up_starts_the_embedded_gateway_and_nothing_else() -> None:
    environment = (ROOT / ".env").read_text("utf-8").splitlines()
    assert "COMPOSE_PROFILES=embedded" in environment
    assert list(started("embedded")) == ["gateway"]


@pytest.mark.parametrize("profile", ["embedded", "triton"])
def test_no_port_is_published_twice_and_none_to_other_machines(profile: str) -> None:
    ports = [port for service in started(profile).values() for port in published(service)]
    assert "127.0.0.1:8000:8000" in ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert len({port.split(":")[1] for port in ports}) == len(ports)


def test_triton_is_reached_by_gateway_and_prometheus_alone() -> None:
    assert "ports" not in SERVICES["triton"]
    (network,) = SERVICES["triton"]["networks"]
    assert COMPOSE["networks"][network] == {"internal": True}
    beside = {name for name, service in SERVICES.items() if network in service["networks"]}
    assert beside == {"triton", "gateway-triton", "prometheus"}


@each_service
def test_every_service_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    user, _ = service["user"].split(":")
    assert user.isdecimal()
    assert int(user) > 0
    assert service["restart"] == "unless-stopped"
    assert {"memory", "pids"} <= service["deploy"]["resources"]["limits"].keys()
    assert not {"privileged", "network_mode", "pid", "ipc", "cap_add", "devices"} & service.keys()


@each_service
def test_every_image_has_a_tag_and_every_service_a_health_check(name: str) -> None:
    service = SERVICES[name]
    tag = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", service["image"]).rpartition(":")[2]
    assert re.fullmatch(r"local|v?\d+\.[\w.-]+", tag), tag
    if "build" in service:
        assert (ROOT / service["build"]["dockerfile"]) == DEPLOY / "gateway" / "Dockerfile"
        assert container_file.last(IMAGE, "HEALTHCHECK")
    else:
        assert service["healthcheck"]["test"][0] == "CMD"


@each_service
def test_everything_that_a_service_names_is_defined(name: str) -> None:
    service = SERVICES[name]
    assert set(service["networks"]) <= COMPOSE["networks"].keys()
    assert set(service.get("secrets", [])) <= COMPOSE["secrets"].keys()
    for volume in service.get("volumes", []):
        if isinstance(volume, dict):
            assert (volume["target"], volume["read_only"]) == ("/models", True)
            continue
        source, *_ = volume.split(":")
        assert source in COMPOSE["volumes"] or (ROOT / source).exists(), source
        assert source in COMPOSE["volumes"] or volume.endswith(":ro")


def test_what_is_defined_is_used() -> None:
    used = list(SERVICES.values())
    assert {s for service in used for s in service.get("secrets", [])} == COMPOSE["secrets"].keys()
    assert {n for service in used for n in service["networks"]} == COMPOSE["networks"].keys()


@pytest.mark.parametrize("name", ["gateway", "gateway-triton"])
def test_the_gateways_environment_is_one_of_settings(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    image = {k: v for step in IMAGE if step.name == "ENV" for k, v in step.pairs.items()}
    given = image | SERVICES[name].get("environment", {})
    for variable, value in given.items():
        monkeypatch.setenv(variable, value)
    settings = Settings.from_environment()
    assert caplog.text == ""  # a name that is no setting would be logged
    assert (settings.host, settings.port) == ("0.0.0.0", 8000)
    assert settings.repository == Path("/models")
    assert (settings.triton is None) == (name == "gateway")
    assert sum(variable.startswith(PREFIX) for variable in given) >= 4


@pytest.mark.parametrize("name", ["gateway", "gateway-triton"])
def test_a_gateway_has_time_to_drain(name: str) -> None:
    assert seconds(SERVICES[name]["stop_grace_period"]) >= Settings().drain_s + 5


def test_triton_is_asked_for_at_the_port_that_it_listens_to() -> None:
    assert SERVICES["gateway-triton"]["environment"]["SINGLEPASS_TRITON"] == "triton:8001"
    assert not any("port" in word for word in SERVICES["triton"]["command"])  # so it is the default


def test_the_engines_are_built_for_the_release_that_serves() -> None:
    build = document(DEPLOY / "tensorrt" / "docker-compose.yml")["services"]["build"]["build"]
    assert build["args"]["RELEASE"] in SERVICES["triton"]["image"]


def test_prometheus_and_grafana_find_their_files() -> None:
    mounts = {
        target: ROOT / source
        for name in ("prometheus", "grafana")
        for source, target, *_ in (v.split(":") for v in SERVICES[name]["volumes"])
    }
    (config,) = [o for o in SERVICES["prometheus"]["command"] if o.startswith("--config.file=")]
    assert mounts[config.split("=")[1]] == DEPLOY / "prometheus" / "prometheus.yml"
    assert mounts["/etc/prometheus/alerts.yml"] == DEPLOY / "prometheus" / "alerts.yml"
    assert (mounts["/etc/grafana/provisioning"] / "datasources").is_dir()
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (mounts["/etc/grafana/singlepass"] / Path(home).name).is_file()
    assert Path(home).parent == Path("/etc/grafana/singlepass")


def test_prometheus_scrapes_the_services_by_their_names() -> None:
    jobs = document(DEPLOY / "prometheus" / "prometheus.yml")["scrape_configs"]
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in jobs}
    assert targets["gateway"] == ["gateway:8000"]
    assert targets["triton"] == ["triton:8002"]
    assert SERVICES["gateway-triton"]["networks"]["monitoring"] == {"aliases": ["gateway"]}
    assert {"monitoring", "inference"} <= set(SERVICES["prometheus"]["networks"])
