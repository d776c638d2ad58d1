"""An overlay as `kubectl kustomize` renders it, for what ours use: resources, patches, a namespace.

So the manifests are checked where there is no kubectl; where there is, a test compares the two.
"""

from pathlib import Path
from typing import Any

from deployed import document, documents

Manifest = dict[str, Any]
KNOWN = {"apiVersion", "kind", "namespace", "resources", "patches"}
CLUSTER_WIDE = {"Namespace"}


def render(folder: Path) -> list[Manifest]:
    """Every manifest of an overlay, patched; raises KeyError where a patch has no target."""
    overlay = document(folder / "kustomization.yaml")
    assert overlay.keys() <= KNOWN, f"{folder} uses {overlay.keys() - KNOWN}, not known here"
    found: dict[tuple[str, str], Manifest] = {}
    for resource in overlay["resources"]:
        path = folder / resource
        for manifest in render(path) if path.is_dir() else documents(path):
            assert key(manifest) not in found, f"{folder} has {key(manifest)} twice"
            found[key(manifest)] = manifest
    for patch in overlay.get("patches", []):
        change = document(folder / patch["path"])
        found[key(change)] = merged(found[key(change)], change)
    for manifest in found.values():
        if manifest["kind"] not in CLUSTER_WIDE:
            manifest["metadata"]["namespace"] = overlay["namespace"]
    return list(found.values())


def key(manifest: Manifest) -> tuple[str, str]:
    """Kind and name."""
    return manifest["kind"], manifest["metadata"]["name"]


def merged(old: Any, new: Any) -> Any:
    """A strategic merge that adds and replaces: lists of named things by name, others whole."""
    if isinstance(old, dict) and isinstance(new, dict):
        return old | {name: merged(old.get(name), value) for name, value in new.items()}
    if isinstance(old, list) and isinstance(new, list) and all("name" in item for item in new):
        changes = {item["name"]: item for item in new}
        kept = [merged(item, changes.pop(item["name"], {})) for item in old]
        return kept + list(changes.values())
    return new
