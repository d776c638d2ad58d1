"""docs/deployment.md says what the files do."""

import re
import subprocess

import yaml
from deployed import DEPLOY, ROOT, document

PAGE = (ROOT / "docs" / "deployment.md").read_text("utf-8")


def test_the_page_names_every_variable_of_the_compose_files_and_its_default() -> None:
    files = (ROOT / "docker-compose.yml", DEPLOY / "tensorrt" / "docker-compose.yml")
    text = "".join(file.read_text("utf-8") for file in files)
    used = dict(re.findall(r"\$\{(\w+):-([^}]+)\}", text))
    for name in ("OWNER", "REPOSITORY"):  # of the engines' container, which says so itself
        used.pop(name)
    rows = [line for line in PAGE.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([A-Z_]+)`", row.split("|")[1])}
    assert named == used.keys()
    for name, default in used.items():
        (row,) = [line for line in rows if f"`{name}`" in line]
        assert default.rpartition("/")[2] in row, name


def test_the_page_links_to_files_that_exist() -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[\w-]+)?\)", PAGE)
    assert len(links) > 8
    assert all((ROOT / "docs" / link).exists() for link in links)


def test_the_line_for_the_prometheus_operator_makes_a_rule_of_all_alerts() -> None:
    (line,) = re.findall(r"^  (\(printf .+?) \| kubectl apply", PAGE, re.MULTILINE | re.DOTALL)
    done = subprocess.run(["/bin/sh", "-ec", line], cwd=ROOT, capture_output=True, check=True)
    rule = yaml.safe_load(done.stdout)
    assert rule["kind"] == "PrometheusRule"
    assert rule["spec"] == document(DEPLOY / "prometheus" / "alerts.yml")


def test_the_options_of_the_engines_container_exist() -> None:
    import singlepass

    (words,) = re.findall(r"run --rm build (--.+)$", PAGE, re.MULTILINE)
    args = singlepass.parser().parse_args(["engine", "/models", *words.split()])
    assert args.serve is True
