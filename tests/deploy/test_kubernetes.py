"""deploy/kubernetes: valid against Kubernetes' own schemas, restricted, consistent in itself."""

import shutil
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from container_file import last, read
from deployed import DEPLOY, ROOT, document, documents, succeeds
from kustomized import Manifest, key, render

from serve.settings import Settings

FOLDER = DEPLOY / "kubernetes"
OVERLAYS = ("embedded-cpu", "triton-gpu")
RENDERED = {name: render(FOLDER / "overlays" / name) for name in OVERLAYS}
OLDEST, NEWEST = "1.30", "1.37"  # preStop sleep is on by default from 1.30 on
each_overlay = pytest.mark.parametrize("overlay", OVERLAYS)


def of_kind(overlay: str, kind: str) -> dict[str, Manifest]:
    """The manifests of a kind, by name."""
    return {m["metadata"]["name"]: m for m in RENDERED[overlay] if m["kind"] == kind}


def pods(overlay: str) -> dict[str, dict[str, Any]]:
    """The pod of each deployment, by its name."""
    return {n: d["spec"]["template"] for n, d in of_kind(overlay, "Deployment").items()}


def settings(overlay: str) -> dict[str, str]:
    """The gateway's settings by variable."""
    return of_kind(overlay, "ConfigMap")["gateway-settings"]["data"]


@each_overlay
@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_manifest_follows_the_schemas_of_kubernetes(overlay: str, version: str) -> None:
    assert len(RENDERED[overlay]) > 10
    for manifest in RENDERED[overlay]:
        kubernetes_validate.validate(manifest, version, strict=True)


@each_overlay
def test_kubectl_renders_the_same(overlay: str) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("there is no kubectl; the manifests are rendered by the tests alone")
    text = succeeds("kubectl", "kustomize", FOLDER / "overlays" / overlay)
    found = {key(m): m for m in yaml.safe_load_all(text)}
    assert found == {key(m): m for m in RENDERED[overlay]}


def test_every_file_is_part_of_something() -> None:
    used = set()
    for file in FOLDER.rglob("kustomization.yaml"):
        listed = document(file)
        names = [*listed["resources"], *(patch["path"] for patch in listed.get("patches", []))]
        used |= {(file.parent / name).resolve() for name in names} | {file}
    there = {*FOLDER.rglob("*.yaml")} - {FOLDER / "components/monitoring/adapter-values.yaml"}
    assert there <= used
    assert all(path.exists() for path in used)


@each_overlay
def test_every_pod_is_restricted(overlay: str) -> None:
    """What the namespace enforces: the restricted Pod Security Standard, and more."""
    (namespace,) = of_kind(overlay, "Namespace").values()
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for pod in pods(overlay).values():
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        kinds = {kind for volume in spec["volumes"] for kind in volume.keys() - {"name"}}
        assert kinds <= {"persistentVolumeClaim", "secret", "emptyDir"}
        for container in spec["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}


@each_overlay
def test_every_pod_has_probes_limits_and_models_that_it_cannot_change(overlay: str) -> None:
    for pod in pods(overlay).values():
        (container,) = pod["spec"]["containers"]
        assert {"startupProbe", "livenessProbe", "readinessProbe"} <= container.keys()
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        assert "memory" in container["resources"]["limits"]
        mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
        assert mounts.keys() == {volume["name"] for volume in pod["spec"]["volumes"]}
        assert mounts["models"]["readOnly"] is True
        assert pod["spec"]["topologySpreadConstraints"]


@each_overlay
def test_every_label_port_claim_and_map_that_is_named_exists(overlay: str) -> None:
    labels = {name: pod["metadata"]["labels"] for name, pod in pods(overlay).items()}
    for kind in ("Service", "PodDisruptionBudget"):
        for name, manifest in of_kind(overlay, kind).items():
            selector = manifest["spec"]["selector"]
            assert selector.get("matchLabels", selector) == labels[name]
    for name, service in of_kind(overlay, "Service").items():
        (container,) = pods(overlay)[name]["spec"]["containers"]
        ports = {port["name"] for port in container["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for pod in pods(overlay).values():
        assert pod["spec"]["serviceAccountName"] in of_kind(overlay, "ServiceAccount")
        for volume in pod["spec"]["volumes"]:
            claim = volume.get("persistentVolumeClaim", {}).get("claimName", "models")
            assert claim in of_kind(overlay, "PersistentVolumeClaim")


@each_overlay
def test_an_autoscaler_owns_the_number_of_each_pod(overlay: str) -> None:
    scalers = of_kind(overlay, "HorizontalPodAutoscaler")
    deployments = of_kind(overlay, "Deployment")
    assert scalers.keys() == deployments.keys()
    assert not any("replicas" in d["spec"] for d in deployments.values())
    assert all(scaler["spec"]["minReplicas"] >= 2 for scaler in scalers.values())


def test_the_measures_that_autoscalers_ask_for_are_made_by_the_adapter() -> None:
    rules = document(FOLDER / "components/monitoring/adapter-values.yaml")["rules"]
    made = {rule["name"]["as"] for kind in ("custom", "external") for rule in rules[kind]}
    asked = set()
    for overlay in OVERLAYS:
        for scaler in of_kind(overlay, "HorizontalPodAutoscaler").values():
            for metric in scaler["spec"]["metrics"]:
                kind = metric["type"].lower()
                asked |= {metric[kind]["metric"]["name"]} if "metric" in metric[kind] else set()
    assert asked == made


@each_overlay
def test_a_gateway_has_time_to_leave_the_proxies_and_to_drain(overlay: str) -> None:
    spec = pods(overlay)["gateway"]["spec"]
    first_s = spec["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain_s = float(settings(overlay)["SINGLEPASS_DRAIN_S"])
    assert spec["terminationGracePeriodSeconds"] >= first_s + drain_s + 5


def test_triton_has_time_to_finish() -> None:
    spec = pods("triton-gpu")["triton"]["spec"]
    (container,) = spec["containers"]
    (exit_s,) = [a.split("=")[1] for a in container["args"] if a.startswith("--exit-timeout-secs")]
    first_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert spec["terminationGracePeriodSeconds"] >= first_s + int(exit_s) + 5


@each_overlay
def test_the_gateways_environment_is_one_of_settings(
    overlay: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (container,) = pods(overlay)["gateway"]["spec"]["containers"]
    image = [step for step in read(DEPLOY / "gateway" / "Dockerfile") if step.name == "ENV"]
    given = {name: value for step in image for name, value in step.pairs.items()}
    given |= settings(overlay) | {entry["name"]: "4" for entry in container.get("env", [])}
    for variable, value in given.items():
        monkeypatch.setenv(variable, value)
    read_back = Settings.from_environment()
    assert caplog.text == ""  # a name that is no setting would be logged
    assert (read_back.triton is not None) == (overlay == "triton-gpu")
    paths = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert str(read_back.repository) in paths
    assert str(Path(str(read_back.keys)).parent) in paths


def test_the_pod_runs_as_the_images_user_and_asks_its_port() -> None:
    image = read(DEPLOY / "gateway" / "Dockerfile")
    spec = pods("embedded-cpu")["gateway"]["spec"]
    context = spec["securityContext"]
    assert f"{context['runAsUser']}:{context['runAsGroup']}" == last(image, "USER").rest
    assert str(spec["containers"][0]["ports"][0]["containerPort"]) == last(image, "EXPOSE").rest


def test_only_the_gateway_calls_triton() -> None:
    policies = of_kind("triton-gpu", "NetworkPolicy")
    closed = policies["deny-all"]["spec"]
    assert (closed["podSelector"], closed["policyTypes"]) == ({}, ["Ingress", "Egress"])
    assert "ingress" not in closed
    labels = {name: pod["metadata"]["labels"] for name, pod in pods("triton-gpu").items()}
    callers = []
    for policy in policies.values():
        chosen = policy["spec"]["podSelector"].get("matchLabels", {})
        reaches_triton = chosen.items() <= labels["triton"].items()
        for rule in policy["spec"].get("ingress", []) if reaches_triton else []:
            callers += [(port["port"], rule["from"]) for port in rule["ports"]]
    by_port = dict(callers)
    assert len(by_port) == len(callers)
    assert by_port.keys() == {"grpc", "metrics"}
    assert by_port["grpc"] == [{"podSelector": {"matchLabels": labels["gateway"]}}]
    assert "podSelector" not in by_port["metrics"][0]


def test_triton_is_found_by_a_name_that_lists_all_servers() -> None:
    service = of_kind("triton-gpu", "Service")["triton"]["spec"]
    assert service["clusterIP"] == "None"
    host, port = settings("triton-gpu")["SINGLEPASS_TRITON"].split(":")
    assert host == "triton"
    assert int(port) in {entry["port"] for entry in service["ports"]}


def test_kubernetes_and_compose_run_the_same_triton() -> None:
    (container,) = pods("triton-gpu")["triton"]["spec"]["containers"]
    service = document(ROOT / "docker-compose.yml")["services"]["triton"]
    assert container["args"] == service["command"]
    assert container["image"] == service["image"].replace("${RELEASE:-", "").replace("}", "")


def test_the_service_monitor_finds_both_services() -> None:
    (monitor,) = documents(FOLDER / "components" / "monitoring" / "service-monitor.yaml")
    wanted = monitor["spec"]["selector"]["matchLabels"]
    ports = {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]}
    for service in of_kind("triton-gpu", "Service").values():
        labels = service["metadata"]["labels"]
        assert wanted.items() <= labels.items()
        assert labels[monitor["spec"]["jobLabel"]] == service["metadata"]["name"]
        assert ports & {port["name"] for port in service["spec"]["ports"]}
