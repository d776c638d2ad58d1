"""A version that waits for its Triton, versions at the start, and models that share a machine."""

import asyncio
import shutil
import time

import pytest
from fake_backend import FakeBackend
from reloading import draw, on, on_fakes, until
from tiny_repository import pin, publish, write_manifest, write_version

from serve.errors import RepositoryError, SettingsError
from serve.machine import Machine
from serve.slot import files_of


class Slow(FakeBackend):
    """Open at once, and ready when the test says so, as behind a Triton."""

    def __init__(self):
        super().__init__()
        self.why_not = "Triton does not serve it"

    async def start(self):
        self.started = True

    async def close(self):
        self.ready = False
        self.closed = True


class Fakes(dict):
    """The back ends that were opened, by label."""

    def __call__(self, label):
        self[label] = Slow()
        return self[label]


def test_a_version_waits_until_its_back_end_is_ready_and_the_old_one_serves_meanwhile(root):
    fakes = Fakes()

    async def scenario(client, repository):
        fakes["tiny/1"].ready = True
        publish(root, version=2)
        for _ in range(2):
            await repository.look()
        waiting = (await draw(client)).headers["x-model"], (await client.get("/readyz")).text
        fakes["tiny/2"].ready = True
        await repository.look()
        await until(lambda: hasattr(fakes["tiny/1"], "closed"))
        return waiting, (await draw(client)).headers["x-model"], (await client.get("/readyz")).text

    (label, ready), after, ready_after = on_fakes(root, scenario, fakes)
    assert (label, after, ready_after) == ("tiny/1", "tiny/2", "ready\n")
    assert ready == "ready\ntiny/2 waits: Triton does not serve it\n"


def test_a_version_that_waits_is_given_up_for_another_one(root):
    fakes = Fakes()

    async def scenario(client, repository):
        fakes["tiny/1"].ready = True
        seen = []
        for change in (lambda: publish(root, version=2), lambda: publish(root, version=3)):
            change()
            await repository.look()
            seen.append(repository.remarks())
        pin(root, "1")
        await repository.look()
        await until(
            lambda: hasattr(fakes["tiny/2"], "closed") and hasattr(fakes["tiny/3"], "closed")
        )
        return seen, repository.remarks(), repository.get().version

    seen, after, version = on_fakes(root, scenario, fakes)
    assert [one.partition(" ")[0] for (one,) in seen] == ["tiny/2", "tiny/3"]
    assert (after, version) == ([], 1)


def test_a_version_that_waits_is_kept_where_a_newer_one_is_bad_and_goes_with_its_turn(root):
    fakes = Fakes()

    async def scenario(client, repository):
        fakes["tiny/1"].ready = True
        publish(root, version=2)
        await repository.look()
        first = fakes["tiny/2"]
        (publish(root, version=3) / "model.onnx").unlink()
        for _ in range(3):
            await repository.look()
        kept = fakes["tiny/2"] is first and not hasattr(first, "closed")
        pin(root, "3")
        await repository.look()
        await until(lambda: hasattr(first, "closed"))
        return kept, repository.get().version, len(repository.remarks())

    assert on_fakes(root, scenario, fakes) == (True, 1, 1)


def test_a_start_without_triton_waits_for_it_and_says_why(root):
    fakes = Fakes()

    async def scenario(client, repository):
        before = await client.get("/readyz"), await draw(client)
        fakes["tiny/1"].ready = True
        return before, await client.get("/readyz"), await draw(client)

    before, ready, made = on_fakes(root, scenario, fakes)
    assert [one.status_code for one in before] == [503, 503]
    assert before[0].json()["detail"] == before[1].json()["detail"] == "Triton does not serve it"
    assert (ready.status_code, made.status_code) == (200, 200)


def test_a_back_end_that_is_waited_for_is_looked_at_often(root):
    fakes = Fakes()

    async def scenario(client, repository):
        publish(root, version=2)
        await until(lambda: "tiny/2" in fakes)  # as version 1 is not ready either
        fakes["tiny/2"].ready = True
        await until(lambda: repository.get().version == 2)
        return (await draw(client)).status_code

    assert on_fakes(root, scenario, fakes, reload_s=3600) == 200


def test_what_is_open_is_closed_with_the_gateway(root):
    fakes = Fakes()

    async def scenario(client, repository):
        fakes["tiny/1"].ready = True
        publish(root, version=2)
        await repository.look()

    on_fakes(root, scenario, fakes)
    assert fakes.keys() == {"tiny/1", "tiny/2"}
    assert all(fake.closed for fake in fakes.values())


def test_a_version_that_is_being_opened_is_closed_where_the_look_is_given_up(root):
    class Endless(Slow):
        async def start(self):
            self.started = True
            if opened["tiny/1"] is not self:
                await asyncio.Event().wait()

    opened = {}

    def open_backend(label):
        opened[label] = Endless()
        return opened[label]

    async def scenario(client, repository):
        publish(root, version=2)
        await until(lambda: hasattr(opened.get("tiny/2"), "started"))

    on_fakes(root, scenario, open_backend, reload_s=0.01)
    assert opened["tiny/2"].closed


def test_at_the_start_a_version_that_does_not_run_is_passed_over_and_named(root):
    folder = write_version(root, version=2)
    (folder / "model.onnx").write_bytes(b"no graph")
    write_manifest(folder)

    async def scenario(client, repository):
        return (await draw(client)).headers["x-model"], repository.remarks()

    label, (remark,) = on(root, scenario)
    assert label == "tiny/1"
    assert remark.startswith("tiny/2 is refused: ONNX Runtime cannot load")


def test_a_back_end_that_breaks_by_a_bug_at_the_start_is_one_sentence(root):
    class Buggy(FakeBackend):
        async def start(self):
            raise ZeroDivisionError("seven by nothing")

    with pytest.raises(RepositoryError, match=r"1 cannot be opened: ZeroDivisionError\('seven"):
        on_fakes(root, None, lambda label: Buggy())


def test_a_setting_that_cannot_be_obeyed_is_no_fault_of_the_version(root):
    def open_backend(label):
        raise SettingsError("provider is 'cuda', and there is no GPU")

    with pytest.raises(SettingsError, match="there is no GPU"):
        on_fakes(root, None, open_backend)


def test_a_version_that_cannot_be_read_is_named(root):
    shutil.rmtree(root / "tiny" / "1")
    (root / "tiny" / "1").mkdir()
    (root / "tiny" / "1" / "manifest.json").mkdir()
    with pytest.raises(RepositoryError, match=r"manifest\.json cannot be read: Is a directory"):
        on(root, None)


def test_files_that_cannot_be_looked_at_tell_nothing(tmp_path):
    assert files_of(tmp_path / "no") == ()


class Load:
    """A model that has this much to do."""

    def __init__(self, running_s: float, waiting_s: float, call_s: float) -> None:
        self.running_s, self.waiting_s, self.call_s = running_s, waiting_s, call_s


def test_the_others_take_a_call_each_for_each_of_ones_own_and_no_more_than_they_have():
    machine = Machine()
    mine, busy, nearly_idle = Load(9, 9, 9), Load(0.5, 10, 2), Load(0, 1, 3)
    for load in (mine, busy, nearly_idle):
        machine.join(load)
    assert machine.others_s(mine, 1) == 0.5 + 2 + 1
    assert machine.others_s(mine, 3) == 0.5 + 6 + 1
    assert machine.others_s(mine, 99) == 0.5 + 10 + 1
    machine.leave(busy)
    machine.leave(busy)
    assert machine.others_s(mine, 99) == 1
    machine.close()


def test_two_models_under_load_take_turns(tmp_path):
    for model in ("one", "two"):
        write_version(tmp_path, model, max_batch=1)

    async def scenario(client, repository):
        order = []

        async def ask(model, seed):
            await draw(client, model=model, seed=seed)
            order.append(model)

        await asyncio.gather(*(ask("one", seed) for seed in range(20)))
        order.clear()
        start = time.perf_counter()
        await asyncio.gather(*(ask(model, seed) for model in ("one", "two") for seed in range(20)))
        return order, time.perf_counter() - start

    order, _ = on(tmp_path, scenario)
    # all of "one" were asked for first, and yet "two" had had nearly as many half way
    assert abs(order[:20].count("two") - 10) <= 4
