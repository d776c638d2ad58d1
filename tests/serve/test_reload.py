"""New versions while the gateway serves: they take over, and nothing is lost or left."""

import asyncio
import gc
import shutil
import threading
import weakref
from itertools import count
from pathlib import Path

import pytest
from reloading import draw, on, until
from tiny_repository import pin, publish, write_version

SEEDS = range(6)


def references(tmp_path, version) -> dict[int, bytes]:
    """The bytes that a gateway with this version folder alone gives for each seed."""
    alone = tmp_path / f"alone-{version.name}"
    shutil.copytree(version, alone / "tiny" / version.name)

    async def each(client, repository):
        return {seed: (await draw(client, seed=seed)).content for seed in SEEDS}

    return on(alone, each)


def test_a_swap_under_load_loses_no_answer_and_mixes_no_versions(tmp_path):
    root = tmp_path / "repository"
    # one at a time: in a batch these small graphs may differ in one level
    write_version(root, weights=1, max_batch=1)
    coming = write_version(tmp_path / "coming", version=2, weights=2, max_batch=1)
    versions = [root / "tiny" / "1", coming]
    expected = {f"tiny/{one.name}": references(tmp_path, one) for one in versions}

    async def scenario(client, repository):
        answers, old, numbers = [], repository.get(), count()

        async def ask_on():
            while repository.get() is old or next(numbers) < 30:
                seed = len(answers) % len(SEEDS)
                answers.append((seed, await draw(client, seed=seed)))

        askers = [asyncio.create_task(ask_on()) for _ in range(8)]
        await until(lambda: len(answers) > 20)
        coming.rename(root / "tiny" / "2")
        await repository.look()
        await asyncio.gather(*askers)
        await until(lambda: not old.backend.ready)
        return answers

    answers = on(root, scenario)
    assert {answer.status_code for _, answer in answers} == {200}
    assert {answer.headers["x-model"] for _, answer in answers} == {"tiny/1", "tiny/2"}
    assert all(one.content == expected[one.headers["x-model"]][seed] for seed, one in answers)


def test_nothing_of_an_old_version_is_left_in_memory(root):
    async def scenario(client, repository):
        left, threads = [], []
        gc.collect()
        gc.disable()  # nothing waits for the collector, which may be long in coming
        for version in range(2, 6):
            old = repository.get()
            left += [weakref.ref(old), weakref.ref(old.backend), weakref.ref(old.model)]
            await draw(client)
            publish(root, version=version, weights=version)
            await repository.look()
            await until(lambda old=old: not old.backend.ready)
            await asyncio.sleep(0.05)
            threads.append(threading.active_count())
        del old
        gc.enable()
        return [ref() for ref in left], threads

    left, threads = on(root, scenario)
    assert left == [None] * 12
    assert threads[-1] <= threads[0] + 1


def test_what_an_old_version_has_freed_goes_back_to_the_machine(root, monkeypatch):
    given_back = []
    monkeypatch.setattr("serve.repository.give_back", lambda: given_back.append(1))

    async def scenario(client, repository):
        publish(root, version=2)
        await repository.look()
        await until(lambda: given_back)

    on(root, scenario)
    assert given_back == [1]


def test_the_gateway_looks_by_itself(root):
    async def scenario(client, repository):
        publish(root, version=2)
        await until(lambda: repository.get().version == 2)
        metrics = (await client.get("/metrics")).text
        return (await client.get("/v1/models")).json()["data"], metrics

    (model,), metrics = on(root, scenario, reload_s=0.05)
    assert (model["id"], model["version"], model["default"]) == ("tiny", 2, True)
    assert 'singlepass_model_reloads_total{model="tiny",outcome="loaded"} 1.0' in metrics
    assert 'singlepass_model_info{digest="' in metrics
    assert 'version="2"} 1.0' in metrics
    assert 'version="1"} 1.0' not in metrics


def test_zero_seconds_between_looks_means_that_nobody_looks(root):
    async def scenario(client, repository):
        publish(root, version=2)
        await asyncio.sleep(0.1)
        return repository.get().version

    assert on(root, scenario, reload_s=0) == 1


def test_a_rollback_by_pin_is_obeyed_and_so_is_its_end(root):
    publish(root, version=2, weights=2)

    async def scenario(client, repository):
        seen = [(await draw(client)).headers["x-model"]]
        for versions in ("1", "", "1, 2"):
            pin(root, versions)
            await repository.look()
            seen.append((await draw(client)).headers["x-model"])
        return seen

    assert on(root, scenario) == ["tiny/2", "tiny/1", "tiny/2", "tiny/2"]


def test_a_repository_that_is_a_link_is_followed_to_where_it_points_now(root, tmp_path):
    """As git-sync and volumes change: all at once, by another target, there and back."""
    link, other = tmp_path / "link", tmp_path / "other"
    shutil.copytree(root, other)
    write_version(other, version=2, weights=2)
    link.symlink_to(root)

    async def scenario(client, repository):
        served = []
        for target in (other, root):
            (tmp_path / "new").symlink_to(target)
            (tmp_path / "new").replace(link)
            await repository.look()
            served.append((await draw(client)).headers["x-model"])
        return served, repository.remarks()

    assert on(link, scenario) == (["tiny/2", "tiny/1"], [])


def test_a_version_that_is_overwritten_goes_on_from_memory(root):
    async def scenario(client, repository):
        before = (await draw(client)).content
        for file in (root / "tiny" / "1").iterdir():
            file.write_bytes(b"rubbish")
        await repository.look()
        return before, (await draw(client)).content, repository.remarks()

    before, after, remarks = on(root, scenario)
    assert (after, remarks) == (before, [])


def test_a_version_folder_that_is_taken_away_is_a_rollback(root):
    publish(root, version=2)

    async def scenario(client, repository):
        shutil.rmtree(root / "tiny" / "2")
        await repository.look()
        return (await draw(client)).headers["x-model"]

    assert on(root, scenario) == "tiny/1"


@pytest.mark.parametrize("whole", [True, False])
def test_a_repository_that_is_gone_changes_nothing_and_is_named(root, whole, caplog):
    async def scenario(client, repository):
        shutil.rmtree(root if whole else root / "tiny")
        for _ in range(2):
            await repository.look()
        return await draw(client), (await client.get("/readyz")).text

    answer, ready = on(root, scenario)
    assert answer.status_code == 200
    assert ready.startswith("ready\nserving from memory: the model repository ")
    assert caplog.text.count("serving from memory") == 1


@pytest.mark.parametrize("name", ["repository", "tiny"])
def test_a_folder_that_cannot_be_read_takes_nothing_away(root, monkeypatch, name):
    real = Path.iterdir

    def iterdir(folder):
        if folder.name == name:
            raise PermissionError(13, "Permission denied")
        return real(folder)

    async def scenario(client, repository):
        monkeypatch.setattr(Path, "iterdir", iterdir)
        await repository.look()
        return repository.remarks(), (await draw(client)).status_code

    (remark,), status = on(root, scenario)
    assert status == 200
    assert remark.endswith("cannot be read: Permission denied")


def test_a_look_that_fails_by_a_bug_does_not_end_the_watch(root, caplog):
    async def broken():
        raise ZeroDivisionError

    async def scenario(client, repository):
        repository._slots["tiny"].look = broken
        await until(lambda: "a look at" in caplog.text)
        del repository._slots["tiny"].look
        publish(root, version=2)
        await until(lambda: repository.get().version == 2)
        return (await draw(client)).status_code

    assert on(root, scenario, reload_s=0.05) == 200
    assert "ZeroDivisionError" in caplog.text
