"""The pages for operators and callers tell of every setting, every metric and every problem."""

import re
from pathlib import Path

import pytest

from serve.metrics import Metrics
from serve.problems import BUG, STATUSES
from serve.settings import PREFIX, Settings

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "operations.md").read_text(encoding="utf-8")


def rows(first: str) -> dict[str, list[str]]:
    """The table rows whose first cell is a code of this form, by that code."""
    found = [re.split(r" *\| *", line.strip("| ")) for line in PAGE.splitlines() if "|" in line]
    return {cells[0].strip("`"): cells[1:] for cells in found if re.fullmatch(first, cells[0])}


def test_every_setting_is_in_the_table_and_nothing_else():
    assert {*rows(rf"`{PREFIX}\w+`")} == {PREFIX + name.upper() for name in Settings.model_fields}


@pytest.mark.parametrize("name", Settings.model_fields)
def test_the_table_tells_the_default_of_each_setting(name):
    default, meaning = rows(rf"`{PREFIX}\w+`")[PREFIX + name.upper()]
    value = Settings.model_fields[name].default
    if value in (None, ()):
        assert default in ("none", "all", "the user's")
    else:
        assert default == (f"{value:g}" if isinstance(value, float) else str(value).lower())
    assert len(meaning) > 4


def test_every_metric_is_in_the_table_with_its_labels():
    metrics = Metrics("1")
    tiny = metrics.model("tiny")
    tiny.serves(1, "abc")
    tiny.watch(lambda: 0, lambda: 0.0, lambda: True)
    metrics.answered("/livez", "GET", 200, 0.0)
    metrics.refused("not-ready")
    text = metrics.text()[0].decode()
    families = {name for name in re.findall(r"^# TYPE (\w+)", text, re.M) if "singlepass" in name}
    table = rows(r"`singlepass_\w+`")
    assert {*table} == families
    for name, (labels, _) in table.items():
        pairs = re.search(rf"^{name}(?:_count)?{{(.*)}} ", text, re.M)[1]
        assert {*re.findall(r"`(\w+)`", labels)} == {*re.findall(r"(\w+)=", pairs)}, name


def test_every_problem_is_in_the_callers_table_with_its_status():
    page = (DOCS / "http.md").read_text(encoding="utf-8")
    listed = {
        (int(status), slug)
        for status, slugs in re.findall(r"^\| (\d{3}) \| (`.*?`) \|", page, re.M)
        for slug in re.findall(r"`([a-z-]+)`", slugs)
    }
    assert listed == {*STATUSES.values(), BUG[:2], (404, "not-found"), (405, "method-not-allowed")}
