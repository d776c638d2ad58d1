"""Several models in one repository: who answers, who comes and who leaves."""

import asyncio
import shutil

import pytest
from fake_backend import FakeBackend, grey
from reloading import draw, on, on_fakes, until
from tiny_repository import publish, write_version

from serve.errors import RepositoryError


@pytest.fixture
def root(tmp_path):
    """A repository with the models "first" and "second"."""
    for weights, model in enumerate(("second", "first")):
        write_version(tmp_path / "repository", model, weights=weights)
    return tmp_path / "repository"


def spoil(folder):
    (folder / "model.onnx").unlink()


def test_models_answer_side_by_side_by_name_and_by_version(root):
    async def scenario(client, repository):
        names = ("first", "second", "first/1")
        ours = await asyncio.gather(*(draw(client, model=name) for name in names))
        body = {"prompt": "a red circle", "model": "second"}
        theirs = await client.post("/v1/images/generations", json=body)
        return ours, theirs.headers["x-model"]

    (first, second, again), theirs = on(root, scenario)
    assert [one.headers["x-model"] for one in (first, second)] == ["first/1", "second/1"]
    assert first.content == again.content != second.content
    assert theirs == "second/1"


@pytest.mark.parametrize("path", ["/generate", "/v1/images/generations"])
def test_without_a_name_the_models_to_choose_from_are_listed(root, path):
    async def scenario(client, repository):
        return await client.post(path, json={"prompt": "a red circle"})

    answer = on(root, scenario)
    assert answer.status_code == (422 if path == "/generate" else 400)
    assert "model: is required, as several are served: first, second" in answer.text


def test_a_model_that_is_not_there_is_named_with_those_that_are(root):
    async def scenario(client, repository):
        return [(await draw(client, model=name)).json()["detail"] for name in ("no", "first/2")]

    served = "served is first, as first/1; second, as second/1"
    assert on(root, scenario) == [f"model: is 'no', {served}", f"model: is 'first/2', {served}"]


@pytest.mark.parametrize("named", ["second,first", " second , first,second", "second"])
def test_the_first_model_in_the_settings_answers_without_a_name(root, named):
    async def scenario(client, repository):
        models = (await client.get("/v1/models")).json()["data"]
        one = (await client.get("/v1/models/second/1")).json()
        return (await draw(client)).headers["x-model"], models, one

    label, models, one = on(root, scenario, model=named)
    assert label == "second/1"
    assert [model["default"] for model in models] == [True, False][: len(models)]
    assert {model["id"] for model in models} == {*named.replace(" ", "").split(",")}
    assert one == models[0] | {"id": "second/1"}


def test_a_model_that_comes_is_served_and_one_that_goes_leaves(root):
    async def scenario(client, repository):
        seen = []
        publish(root, "another")
        shutil.rmtree(root / "second")
        await repository.look()
        for name in ("another", "first", "second"):
            seen.append((await draw(client, model=name)).status_code)
        return seen, [one.name for one in repository.all()], (await client.get("/metrics")).text

    seen, names, metrics = on(root, scenario)
    assert seen == [200, 200, 404]
    assert names == ["another", "first"]
    assert 'model_ready{model="another"} 1.0' in metrics
    assert 'model="second"' not in metrics


def test_a_model_that_goes_answers_what_it_has_accepted(root):
    released = asyncio.Event()

    async def held(feeds):
        await released.wait()
        return await grey(feeds)

    async def scenario(client, repository):
        leaving = repository.get("second")
        asked = asyncio.create_task(draw(client, model="second"))
        await until(lambda: leaving.users == 1)
        shutil.rmtree(root / "second")
        await repository.look()
        seen = [leaving.backend.ready, repository.idle, len(repository.all())]
        released.set()
        seen.append((await asked).status_code)
        await until(lambda: not leaving.backend.ready)
        return seen, repository.idle

    assert on_fakes(root, scenario, lambda label: FakeBackend(held)) == (
        [True, False, 1, 200],
        True,
    )


def test_models_whose_folders_are_gone_go_on_where_there_is_nothing_else_to_serve(root):
    async def scenario(client, repository):
        spoil(publish(root, "third"))
        for name in ("first", "second"):
            shutil.rmtree(root / name)
        await repository.look()
        status = (await draw(client, model="first")).status_code
        remarks = repository.remarks()
        shutil.rmtree(root / "third")
        publish(root, "fourth")
        await repository.look()
        return status, remarks, [one.name for one in repository.all()]

    status, remarks, names = on(root, scenario)
    assert (status, names) == (200, ["fourth"])
    assert [remark.partition(" ")[0] for remark in remarks] == ["first", "second", "third/1"]


def test_a_named_model_whose_folder_is_gone_goes_on_from_memory(root):
    async def scenario(client, repository):
        shutil.rmtree(root / "first")
        await repository.look()
        publish(root, "third")
        await repository.look()
        return (await draw(client)).status_code, (await client.get("/readyz")).text

    status, ready = on(root, scenario, model="first,second")
    assert status == 200
    assert ready == f"ready\nfirst is refused: {root / 'first'} holds no version\n"


def test_a_model_that_is_broken_is_named_and_does_not_stop_the_others(root):
    spoil(root / "first" / "1")

    async def scenario(client, repository):
        answers = [await draw(client), await draw(client, model="first")]
        ready = await client.get("/readyz")
        shutil.rmtree(root / "first")
        publish(root, "first")
        for _ in range(2):
            await repository.look()
        return answers, ready.text, await draw(client, model="first")

    (default, missing), ready, repaired = on(root, scenario)
    assert (default.status_code, missing.status_code, repaired.status_code) == (200, 404, 200)
    assert ready.startswith("ready\nfirst/1 is refused: ")


@pytest.mark.parametrize("named", ["second,first", "first"])
def test_a_named_model_that_is_broken_stops_the_start(root, named):
    spoil(root / "first" / "1")
    with pytest.raises(RepositoryError, match=r"model\.onnx is missing"):
        on(root, None, model=named)


def test_a_repository_with_nothing_good_stops_the_start(root):
    for name in ("first", "second"):
        spoil(root / name / "1")
    with pytest.raises(RepositoryError, match=r"first/1/model\.onnx is missing"):
        on(root, None)


def test_a_named_model_that_is_not_there_stops_the_start(root):
    with pytest.raises(RepositoryError, match=r"no model 'third' in .*; it holds: first, second"):
        on(root, None, model="first,third")


def test_one_model_that_is_not_ready_refuses_alone_and_the_probe_names_it(root):
    async def scenario(client, repository):
        repository.get("first").backend.ready = False
        answers = [await draw(client, model=name) for name in ("first", "second")]
        return answers, await client.get("/readyz")

    (refused, made), ready = on_fakes(root, scenario, lambda label: FakeBackend())
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert made.status_code == 200
    assert ready.status_code == 503
    assert ready.json()["detail"] == "first: the model is not loaded"


def test_the_foretold_wait_of_a_model_counts_what_another_one_has_queued(root):
    async def scenario(client, repository):
        first, second = repository.get("first"), repository.get("second")
        alone_s = second.backend.wait_s(1)
        asked = asyncio.create_task(draw(client, model="first", num_images=64))
        while first.backend.waiting < 32:
            await asyncio.sleep(0)
        beside_s = second.backend.wait_s(1)
        await asked
        return alone_s, beside_s, second.backend.wait_s(1)

    alone_s, beside_s, after_s = on(root, scenario, max_images=64)
    assert beside_s > 1.5 * alone_s
    assert after_s < beside_s
