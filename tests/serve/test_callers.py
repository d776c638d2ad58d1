"""Who asks: keys, priorities and limits, on the gateway and by the headers alone."""

import asyncio
import re

import pytest
from fake_backend import FakeBackend, client_of

from serve import callers as callers_module
from serve.app import create_app
from serve.callers import Callers
from serve.errors import InvalidParametersError, SettingsError, UnauthorizedError
from serve.keys import make_key
from serve.settings import Settings
from serve.turn import USUAL, Turn

RED = {"prompt": "a red circle"}


@pytest.fixture
def keys(tmp_path):
    """A file with three keys, and the keys by their names."""
    made = {name: make_key(name) for name in ("alice", "bob", "night")}
    path = tmp_path / "keys.toml"
    extra = {"alice": 'rate = "4/hour"\n', "bob": "", "night": 'priority = "batch"\n'}
    path.write_text("".join(lines + extra[name] for name, (_, lines) in made.items()))
    path.chmod(0o600)
    return path, {name: key for name, (key, _) in made.items()}


def bearing(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def talk(settings, scenario, backend=None):
    """The result of `scenario(client, backend)` with a gateway."""

    async def run():
        fake = backend or FakeBackend()
        async with client_of(create_app(settings, fake)) as client:
            return await scenario(client, fake)

    return asyncio.run(run())


def test_an_open_gateway_knows_anybody_and_no_limit():
    callers = Callers.of(Settings())
    caller = callers.identify({"Authorization": "Bearer whatever"})
    assert caller.turn({}) == USUAL
    assert not callers.told_apart
    callers.charge(caller, 10**6)


def test_an_open_gateway_follows_no_file():
    async def scenario():
        callers = Callers.of(Settings())
        await callers.start()
        await callers.close()
        return len(asyncio.all_tasks())

    assert asyncio.run(scenario()) == 1


def test_a_limit_without_keys_is_refused():
    with pytest.raises(SettingsError, match="rate is '9/minute' and there are no keys"):
        Callers.of(Settings(rate="9/minute"))


@pytest.mark.parametrize(
    "settings",
    [{"rate": "fast"}, {"keys": "missing.toml"}, {"keys": "missing.toml", "rate": "0/day"}],
)
def test_settings_that_cannot_be_obeyed_stop_the_start(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=r"^(rate is|the keys missing.toml cannot be read)"):
        Callers.of(Settings(**settings))


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer  ", "Basic YTpi", "sp_abc"])
def test_without_a_key_nobody_is_let_in(keys, header):
    callers = Callers.of(Settings(keys=keys[0]))
    with pytest.raises(UnauthorizedError, match=r"^a key is needed: send the header Authorization"):
        callers.identify({"Authorization": header} if header else {})


def test_a_key_names_its_owner_and_another_nobody(keys):
    path, made = keys
    callers = Callers.of(Settings(keys=path))
    assert callers.told_apart
    assert callers.identify(bearing(made["bob"])).name == "bob"
    assert callers.identify({"Authorization": f"bearer   {made['bob']} "}).name == "bob"
    for wrong in (made["bob"][:-1], made["bob"] + "x", "\xfc"):
        with pytest.raises(UnauthorizedError, match="is not known here"):
            callers.identify(bearing(wrong))


def test_a_key_without_a_rate_has_that_of_the_settings(keys):
    path, made = keys
    callers = Callers.of(Settings(keys=path, rate="7/hour"))
    amounts = [callers.identify(bearing(made[name])).rate.amount for name in ("alice", "bob")]
    assert amounts == [4, 7]


def test_the_priority_is_the_requests_but_not_beyond_the_keys(keys):
    path, made = keys
    callers = Callers.of(Settings(keys=path))
    bob, night = (callers.identify(bearing(made[name])) for name in ("bob", "night"))
    assert bob.turn({}) == Turn("bob", "interactive")
    assert bob.turn({"X-Priority": "batch"}) == Turn("bob", "batch")
    assert night.turn({}) == night.turn({"X-Priority": "batch"}) == Turn("night", "batch")
    with pytest.raises(
        InvalidParametersError, match=r"'interactive', allowed for night is: batch$"
    ):
        night.turn({"X-Priority": "interactive"})
    with pytest.raises(
        InvalidParametersError, match=r"^X-Priority: is 'soon', allowed for bob is: "
    ):
        bob.turn({"X-Priority": "soon"})


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/generate"), ("POST", "/v1/images/generations"), ("GET", "/v1/models")],
)
def test_where_pictures_are_asked_for_a_key_is_needed(settings, keys, method, path):
    async def scenario(client, backend):
        body = {"json": RED} if method == "POST" else {}
        refused = await client.request(method, path, **body)
        let_in = await client.request(method, path, headers=bearing(keys[1]["bob"]), **body)
        return refused, let_in, len(backend.within_s)

    refused, let_in, drawn = talk(settings.model_copy(update={"keys": keys[0]}), scenario)
    assert (refused.status_code, let_in.status_code) == (401, 200)
    assert refused.headers["WWW-Authenticate"].startswith("Bearer")
    assert drawn == (method == "POST")


@pytest.mark.parametrize("path", ["/", "/livez", "/readyz", "/metrics", "/openapi.json"])
def test_what_machines_and_browsers_ask_first_needs_no_key(settings, keys, path):
    async def scenario(client, backend):
        return (await client.get(path)).status_code

    assert talk(settings.model_copy(update={"keys": keys[0]}), scenario) == 200


def test_too_many_pictures_of_a_key_are_refused_until_they_pass(settings, keys):
    async def scenario(client, backend):
        headers = bearing(keys[1]["alice"])
        asked = [RED | {"num_images": n} for n in (3, 2, 1, 5)]
        answers = [await client.post("/generate", json=body, headers=headers) for body in asked]
        return [answer.status_code for answer in answers], answers[1], len(backend.within_s)

    statuses, refused, drawn = talk(settings.model_copy(update={"keys": keys[0]}), scenario)
    assert statuses == [200, 429, 200, 422]
    assert refused.json()["type"] == "urn:singlepass:problem:rate-limited"
    assert 1 <= int(refused.headers["Retry-After"]) <= 7200
    assert drawn == 4


def test_a_refused_request_costs_nothing(settings, keys):
    async def scenario(client, backend):
        headers = bearing(keys[1]["alice"])
        hurried = headers | {"X-Deadline-Ms": "1"}
        late = [await client.post("/generate", json=RED, headers=hurried) for _ in range(9)]
        body = RED | {"num_images": 4}
        return {a.status_code for a in late}, await client.post(
            "/generate", json=body, headers=headers
        )

    statuses, let_in = talk(
        settings.model_copy(update={"keys": keys[0]}), scenario, FakeBackend(each_s=0.1)
    )
    assert statuses == {429}
    assert let_in.status_code == 200


def test_a_key_that_is_taken_away_is_refused_while_the_gateway_runs(settings, keys, monkeypatch):
    monkeypatch.setattr(callers_module, "LOOK_S", 0.01)
    path, made = keys

    async def scenario(client, backend):
        headers = bearing(made["bob"])
        before = await client.post("/generate", json=RED, headers=headers)
        path.write_text(re.sub(r"\[keys\.bob\]\n.*\n", "", path.read_text()))
        async with asyncio.timeout(5):
            while (await client.post("/generate", json=RED, headers=headers)).status_code != 401:
                await asyncio.sleep(0.01)
        return before.status_code

    assert talk(settings.model_copy(update={"keys": path}), scenario) == 200


def test_more_pictures_than_a_keys_whole_rate_are_refused_by_the_fields_name(settings, keys):
    async def scenario(client, backend):
        headers = bearing(keys[1]["alice"])
        ours = await client.post("/generate", json=RED | {"num_images": 5}, headers=headers)
        body = {"prompt": RED["prompt"], "n": 5}
        theirs = await client.post("/v1/images/generations", json=body, headers=headers)
        return ours.json(), theirs.json()["error"]

    ours, theirs = talk(settings.model_copy(update={"keys": keys[0]}), scenario)
    detail = "is 5, the key 'alice' may have 4 pictures per hour"
    assert ours["errors"] == [{"name": "num_images", "detail": detail}]
    assert (theirs["param"], theirs["message"]) == ("n", f"n: {detail}")


def test_what_was_had_is_not_forgotten_when_the_file_is_read_again(keys):
    path, made = keys

    async def scenario():
        callers = Callers.of(Settings(keys=path))
        callers.charge(callers.identify(bearing(made["alice"])), 4)
        path.write_text(path.read_text() + "# changed\n" + make_key("new")[1])
        callers._file.look()
        callers.charge(callers.identify(bearing(made["alice"])), 1)

    with pytest.raises(Exception, match="the key 'alice' may have 4 pictures per hour"):
        asyncio.run(scenario())
