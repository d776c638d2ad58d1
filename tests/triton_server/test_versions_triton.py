"""New versions behind a real Triton: nobody notices but by the picture."""

import time

import pytest
from running_triton import running
from shipped_model import publish_into
from triton_gateway import Load, drawn_in_process, gateway, ready_s

from export.repository.serving import rollback

pytestmark = pytest.mark.triton

SEEDS = range(8)
POLL = ("--model-control-mode=poll", "--repository-poll-secs=1")
EXPLICIT = ("--model-control-mode=explicit", "--load-model=shapes")


def test_a_version_published_under_load_takes_over_and_a_broken_one_does_not(
    environment: None, tmp_path
) -> None:
    repository = tmp_path / "repository"
    publish_into(repository, "shapes")
    one = drawn_in_process(repository, "shapes", SEEDS)
    with (
        running(repository, tmp_path / "log.txt", *POLL) as server,
        gateway(repository, "shapes", server.url, "--reload-s", 0.5) as client,
    ):
        ready_s(client)
        with Load(client, len(SEEDS)) as load:
            load.wait_for(200)
            publish_into(repository, "shapes", scale=0.5)
            two = drawn_in_process(repository, "shapes", SEEDS)
            load.wait_for_picture(two)
            publish_into(repository, "shapes", spoilt=True)
            time.sleep(4)  # Triton tries it more than once
            asked_before = len(load.answers)
            load.wait_for_more(20)
    assert {answer.status_code for _, answer, _ in load.answers} == {200}
    for seed, answer, _ in load.answers:
        assert answer.content in (one[seed], two[seed])
    assert all(answer.content == two[seed] for seed, answer, _ in load.answers[asked_before:])
    assert "failed to load 'shapes' version 3" in server.log()


def test_a_rollback_under_load_loses_nothing_where_triton_is_told_after_the_gateway(
    environment: None, tmp_path
) -> None:
    repository = tmp_path / "repository"
    for scale in (1.0, 0.5):
        publish_into(repository, "shapes", scale=scale)
    two = drawn_in_process(repository, "shapes", SEEDS)
    with (
        running(repository, tmp_path / "log.txt", *EXPLICIT) as server,
        gateway(repository, "shapes", server.url, "--reload-s", 0.5) as client,
    ):
        ready_s(client)
        with Load(client, len(SEEDS)) as load:
            load.wait_for_picture(two)
            assert rollback(repository, "shapes") == 1
            one = drawn_in_process(repository, "shapes", SEEDS)
            load.wait_for_picture(one)
            load.wait_for_more(20)
            server.load("shapes")
            load.wait_for_more(20)
    assert {answer.status_code for _, answer, _ in load.answers} == {200}
    assert all(answer.content in (one[seed], two[seed]) for seed, answer, _ in load.answers)
