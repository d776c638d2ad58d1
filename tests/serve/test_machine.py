"""The machine's cores, held by one call after another."""

import asyncio
import threading

import pytest

from serve.machine import Machine, usable_cores


async def hold(machine: Machine, cores: int, name: str, order: list[str], go: asyncio.Event):
    async with machine.turn(cores):
        order.append(name)
        await go.wait()


def on(machine: Machine, scenario):
    async def run():
        try:
            return await scenario(machine)
        finally:
            machine.close()

    return asyncio.run(run())


def test_as_many_calls_run_as_there_are_cores_and_the_others_follow():
    async def scenario(machine):
        order, go = [], asyncio.Event()
        calls = [asyncio.create_task(hold(machine, 1, name, order, go)) for name in "abc"]
        await asyncio.sleep(0.01)
        begun = list(order)
        go.set()
        await asyncio.gather(*calls)
        return begun, order

    assert on(Machine(2), scenario) == (["a", "b"], ["a", "b", "c"])


def test_who_asks_for_all_cores_is_not_overtaken_by_those_who_ask_for_few():
    async def scenario(machine):
        order, go, later = [], asyncio.Event(), asyncio.Event()
        later.set()
        asked = (("a", 1, go), ("all", 2, later), ("b", 1, later))
        calls = [asyncio.create_task(hold(machine, n, name, order, g)) for name, n, g in asked]
        await asyncio.sleep(0.01)
        begun = list(order)  # one core is free, and kept for "all"
        go.set()
        await asyncio.gather(*calls)
        return begun, order

    assert on(Machine(2), scenario) == (["a"], ["a", "all", "b"])


@pytest.mark.parametrize("granted", [False, True])
def test_who_is_cancelled_while_waiting_holds_nothing(granted):
    async def scenario(machine):
        order, go, left = [], asyncio.Event(), asyncio.Event()
        go.set()
        first = asyncio.create_task(hold(machine, 2, "first", order, left))
        await asyncio.sleep(0)
        gone = asyncio.create_task(hold(machine, 2, "gone", order, go))
        await asyncio.sleep(0)
        if granted:  # the cores are its own, but it has not been told yet
            left.set()
            await asyncio.sleep(0)
        gone.cancel()
        left.set()
        await asyncio.wait([first, gone])
        await asyncio.wait_for(hold(machine, 2, "last", order, go), 5)
        return order

    assert on(Machine(2), scenario) == ["first", "last"]


def test_a_thread_that_measures_has_the_machine_to_itself():
    async def scenario(machine):
        loop, order, inside = asyncio.get_running_loop(), [], threading.Event()

        def measure():
            with machine.alone(loop):
                inside.set()
                order.append("measured")

        async with machine.turn(1):
            measuring = asyncio.create_task(asyncio.to_thread(measure))
            await asyncio.sleep(0.02)
            assert not inside.is_set()
            order.append("called")
        await measuring
        async with machine.turn(2):
            return order

    assert on(Machine(2), scenario) == ["called", "measured"]


@pytest.mark.parametrize(
    ("quota", "least", "most"),
    [("100000 100000", 1, 1), ("50000 100000", 1, 1), ("max 100000", 1, 4096), (None, 1, 4096)],
)
def test_a_containers_share_bounds_the_cores(tmp_path, quota, least, most):
    file = tmp_path / "cpu.max"
    if quota is not None:
        file.write_text(f"{quota}\n", "ascii")
    assert least <= usable_cores(file) <= most
