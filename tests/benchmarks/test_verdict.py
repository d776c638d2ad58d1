"""Figures against their bounds."""

import pytest
from verdict import Verdict, conclude


@pytest.mark.parametrize(
    ("figure", "at_least", "passed"),
    [(1.0, False, True), (1.1, False, False), (1.0, True, True), (0.9, True, False)],
)
def test_a_figure_passes_on_its_side_of_the_bound(figure, at_least, passed):
    assert Verdict("ratio", figure, 1.0, "x", at_least).passed is passed


@pytest.mark.parametrize("at_least", [True, False])
def test_what_is_not_a_number_fails(at_least):
    assert not Verdict("ratio", float("nan"), 1.0, at_least=at_least).passed


def test_one_failure_is_the_exit_status(capsys):
    good, bad = Verdict("memory", 300, 350, " MB"), Verdict("start", 4.2, 3, " s")
    assert (conclude([good]), conclude([good, bad])) == (0, 1)
    assert capsys.readouterr().out.splitlines()[-1] == "FAIL  start: 4.2 s, at most 3 s"
