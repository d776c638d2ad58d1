"""Dockerfiles without a container engine: what they copy is there, what they run is a command.

The gateway's is carried out step by step in a folder, and what comes out answers a request.
"""

import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from confined import confined
from container_file import Folder, kept, last, read
from deployed import DEPLOY, ROOT, succeeds
from PIL import Image
from watched_gateway import free_port, gateway

import serve
import singlepass
from serve.settings import Settings

GATEWAY = DEPLOY / "gateway" / "Dockerfile"
MOST_BYTES = 400 * 10**6
# what python:slim-bookworm has besides Python; everything else must come with the packages
SYSTEM = {
    *("libc.so.6", "libm.so.6", "libdl.so.2", "librt.so.1", "libpthread.so.0"),
    *("libgcc_s.so.1", "libstdc++.so.6", "libz.so.1", "ld-linux-x86-64.so.2"),
    *("ld-linux-aarch64.so.1",),
}
each_file = pytest.mark.parametrize("name", ["gateway", "tensorrt"])


@each_file
def test_what_is_copied_is_there_and_kept_in_the_build(name: str) -> None:
    dockerfile = DEPLOY / name / "Dockerfile"
    copied = {
        word
        for step in read(dockerfile)
        if step.name == "COPY" and not step.rest.startswith("--from=")
        for word in step.rest.split()[:-1]
    }
    assert copied == kept(dockerfile.with_name("Dockerfile.dockerignore"))
    assert all((ROOT / word).exists() for word in copied)


@each_file
def test_the_container_runs_one_process_of_ours(name: str) -> None:
    steps = read(DEPLOY / name / "Dockerfile")
    program, *arguments = last(steps, "ENTRYPOINT").words
    assert Path(program).name == "distill"
    more = last(steps, "CMD").words if any(step.name == "CMD" for step in steps) else []
    assert callable(singlepass.parser().parse_args([*arguments, *more]).command)


def test_every_base_has_a_tag_of_its_own() -> None:
    bases = [step.words[0] for step in read(GATEWAY) if step.name == "FROM"]
    assert len(set(bases)) == 1
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+", bases[0])
    assert last(read(DEPLOY / "tensorrt" / "Dockerfile"), "FROM").rest.endswith(":${RELEASE}-py3")


def test_the_gateway_is_nobody_in_particular_and_is_stopped_by_sigterm() -> None:
    steps = read(GATEWAY)
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", last(steps, "USER").rest)
    assert last(steps, "STOPSIGNAL").rest == "SIGTERM"
    assert [step.name for step in steps].index("USER") < [s.name for s in steps].index("CMD")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The gateway's image as a folder."""
    top = tmp_path_factory.mktemp("image").resolve()
    folder = Folder(top, ROOT, ("/opt/singlepass", "/source"))
    folder.carry_out(read(GATEWAY))
    return folder


@pytest.fixture(scope="module")
def installed(image: Folder) -> Path:
    """The environment that the final stage has."""
    return Path(image.inside("/opt/singlepass"))


@pytest.mark.slow
def test_the_gateways_packages_are_small(installed: Path) -> None:
    sizes = {path: path.lstat().st_size for path in installed.rglob("*") if path.is_file()}
    by_package: dict[str, int] = {}
    for path, size in sizes.items():
        parts = path.relative_to(installed).parts
        name = parts[3] if len(parts) > 4 else "other"
        by_package[name] = by_package.get(name, 0) + size
    for name, size in sorted(by_package.items(), key=lambda pair: -pair[1])[:12]:
        print(f"{size / 1e6:7.1f} MB  {name}")
    print(f"{sum(sizes.values()) / 1e6:7.1f} MB  in all")
    assert sum(sizes.values()) < MOST_BYTES


@pytest.mark.slow
def test_nothing_that_trains_is_installed(installed: Path) -> None:
    packages = {path.name for path in (installed / "lib").glob("python3.*/site-packages/*")}
    assert "onnxruntime" in packages
    assert not packages & {"torch", "diffusers", "transformers", "accelerate", "onnx", "pip"}


@pytest.mark.slow
def test_the_packages_need_no_library_that_the_base_lacks(installed: Path) -> None:
    libraries = [path for path in installed.rglob("*.so*") if path.is_file()]
    own = {path.name for path in libraries}
    needed: set[str] = set()
    for path in libraries:
        said = succeeds("readelf", "--dynamic", path)
        needed |= set(re.findall(r"\(NEEDED\)\s+Shared library: \[(.+)\]", said))
    assert len(needed) > 10
    assert needed - own <= SYSTEM


@pytest.mark.slow
def test_the_image_serves_and_is_healthy_and_drains(image: Folder, installed: Path) -> None:
    steps = read(GATEWAY)
    program = str(installed / "bin" / last(steps, "ENTRYPOINT").words[0])
    env = image.env | {"PYTHONPATH": ""}
    with gateway(ROOT / "model_repository", (program,), SINGLEPASS_MODEL="shapes", **env) as url:
        answer = httpx.post(f"{url}/generate", json={"prompt": "a red circle", "seed": 1})
        assert Image.open(io.BytesIO(answer.content)).size == (64, 64)
        assert serve.__version__ in httpx.get(f"{url}/metrics").text
        _, _, line = last(steps, "HEALTHCHECK").rest.partition(" CMD ")
        probe = line.replace("8000", url.rpartition(":")[2])
        run = [str(installed / "bin" / "python"), *re.findall(r'"([^"]+)"', probe)[1:]]
        assert subprocess.run(run, check=False).returncode == 0
    assert subprocess.run(run, capture_output=True, check=False).returncode != 0


@pytest.mark.slow
def test_the_image_serves_as_its_user_on_a_root_that_it_cannot_write_to(
    image: Folder, installed: Path, tmp_path: Path
) -> None:
    """As docker-compose.yml confines it; it is the first process, and its stop signal drains."""
    steps = read(GATEWAY)
    user, _ = last(steps, "USER").words[0].split(":")
    mounted = {"/opt/singlepass": installed, "/models": ROOT / "model_repository"}
    env = {name: value.replace(str(image.top), "") for name, value in image.env.items()}
    env |= {"SINGLEPASS_MODEL": "shapes", "SINGLEPASS_PORT": str(free_port())}
    run = ["/opt/singlepass/bin/python", "/opt/singlepass/bin/distill", *last(steps, "CMD").words]
    with confined(tmp_path, int(user), mounted, run, env) as gateway:
        assert "serving shapes" in gateway.process.stdout.readline()
        assert "ro" in gateway.mounts()["/"]
        assert "ro" in gateway.mounts()["/models"]
        status = gateway.status()
        assert status["Uid"].split() == [user] * 4
        assert int(status["CapBnd"], 16) == int(status["CapEff"], 16) == 0
        assert status["NoNewPrivs"] == "1"
        assert status["NSpid"].split()[-1] == "1"
        url = f"http://127.0.0.1:{env['SINGLEPASS_PORT']}/generate"
        assert httpx.post(url, json={"prompt": "a red circle"}).status_code == 200
        os.kill(gateway.pid, getattr(signal, last(steps, "STOPSIGNAL").rest))
        assert gateway.process.wait(timeout=Settings().drain_s) == 0


def test_python_is_the_one_that_these_tests_run_on() -> None:
    base = last(read(GATEWAY), "FROM").words[0]
    expected = f"{sys.version_info.major}.{sys.version_info.minor}"
    if not base.startswith(f"python:{expected}."):
        pytest.skip(f"these tests run on Python {expected}, the image on {base}")
    assert f">={expected}" in (ROOT / "pyproject.toml").read_text("utf-8")


@pytest.mark.slow
def test_the_page_and_its_files_are_packed(installed: Path) -> None:
    (packed,) = installed.glob("lib/python3.*/site-packages/serve/page")
    assert {f.name for f in packed.iterdir()} == {f.name for f in (ROOT / "serve/page").iterdir()}
