"""The page's files as HTTP gives them: headers, entity tags, and nothing else of the folder."""

import asyncio
from importlib import resources

import pytest
from fake_backend import FakeBackend, client_of

from serve import page
from serve.app import create_app

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


def answers(settings, *requests):
    """Answers to (method, path, headers)."""

    async def run():
        async with client_of(create_app(settings, FakeBackend())) as client:
            return [await client.request(m, path, headers=headers) for m, path, headers in requests]

    return asyncio.run(run())


def test_every_file_of_the_folder_is_served_as_it_is(settings):
    folder = resources.files("serve").joinpath("page")
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    got = answers(settings, *(("GET", f"/page/{name}", {}) for name in files))
    assert [answer.status_code for answer in got] == [200] * len(files)
    assert [answer.content for answer in got] == [*files.values()]
    assert {*files} == {*page.assets()}


@pytest.mark.parametrize("path", ["/", "/page/page.js", "/page/page.css", "/page/icon.svg"])
def test_every_answer_carries_the_policy_and_a_tag_to_ask_again_with(settings, path):
    (first,) = answers(settings, ("GET", path, {}))
    (head,) = answers(settings, ("HEAD", path, {}))
    (again,) = answers(settings, ("GET", path, {"If-None-Match": first.headers["etag"]}))
    (other,) = answers(settings, ("GET", path, {"If-None-Match": '"other"'}))
    statuses = [answer.status_code for answer in (first, head, again, other)]
    assert statuses == [200, 200, 304, 200]
    assert again.content == b""
    assert head.headers["content-length"] == str(len(first.content))
    for answer in (first, head, again, other):
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["cache-control"] == "no-cache"
        assert answer.headers["etag"] == first.headers["etag"]


def test_the_media_types_are_those_that_browsers_run(settings):
    paths = {"/": "text/html", "/page/page.js": "text/javascript", "/page/page.css": "text/css"}
    got = answers(settings, *(("GET", path, {}) for path in paths))
    assert [one.headers["content-type"] for one in got] == [
        f"{media_type}; charset=utf-8" for media_type in paths.values()
    ]


@pytest.mark.parametrize("path", ["/page/no.js", "/page/..%2fpage.py", "/page/", "/page"])
def test_nothing_else_is_there(settings, path):
    (answer,) = answers(settings, ("GET", path, {}))
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


def test_the_page_is_not_part_of_the_api(settings):
    paths = create_app(settings, FakeBackend()).openapi()["paths"]
    assert not [path for path in paths if path == "/" or path.startswith("/page")]


def test_the_index_names_only_files_that_are_there():
    index = page.assets()["index.html"].data.decode()
    named = [part.split('"')[0] for part in index.split('="/page/')[1:]]
    assert len(named) >= 3
    assert {*named} <= {*page.assets()}
    assert "<style" not in index
    assert " style=" not in index
    assert index.count("<script") == index.count('<script type="module" src="/page/page.js">') == 1
