"""The OpenAPI document: every answer that a route can give is in it, and every example is true."""

import asyncio

import httpx
import pytest
import schemathesis
from fake_backend import FakeBackend, client_of, grey

from serve.app import create_app
from serve.errors import RetryableError
from serve.problems import STATUSES
from serve.schemas import GenerateRequest, ImagesRequest
from serve.settings import Settings

RED = {"prompt": "a red circle", "seed": 5}
POSTS = {"/generate": GenerateRequest, "/v1/images/generations": ImagesRequest}
PATHS = {*POSTS, "/v1/models", "/v1/models/{id}", "/livez", "/readyz", "/metrics"}
NAMED = ("etag", "vary", "retry-after", "server-timing", "www-authenticate")
NAMES = ("generate", "generations", "livez", "metrics", "models", "one_model", "readyz")
TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "null": type(None),
    "boolean": bool,
}


def fits(schema: dict, value: object) -> bool:
    """Whether a value is what a schema says, as far as the schemas of answers go."""
    unknown = {*schema} - {"type", "required", "properties", "items", "enum", "const"}
    assert unknown <= {"contentEncoding", "format", "contentMediaType"}, unknown
    if ("const" in schema and value != schema["const"]) or value not in schema.get("enum", [value]):
        return False
    if "type" in schema:
        kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
        if not any(type(value) is TYPES[kind] for kind in kinds):
            return False
    if isinstance(value, dict):
        known = schema.get("properties", {})
        if not {*schema.get("required", [])} <= {*value} <= {*known}:
            return False
        return all(fits(known[key], item) for key, item in value.items())
    return not isinstance(value, list) or all(fits(schema["items"], item) for item in value)


@pytest.fixture(scope="module")
def whole(repository):
    """The document as it is served."""
    return create_app(Settings(repository=repository), FakeBackend()).openapi()


@pytest.fixture(scope="module")
def document(whole):
    """The document with every schema where it is named."""

    def put_in(part):
        if isinstance(part, dict) and "$ref" in part:
            assert [*part] == ["$ref"]
            return put_in(whole["components"]["schemas"][part["$ref"].rpartition("/")[2]])
        if isinstance(part, dict):
            return {key: put_in(value) for key, value in part.items()}
        return [put_in(value) for value in part] if isinstance(part, list) else part

    return put_in(whole)


def operations(document):
    for path, item in document["paths"].items():
        for operation in item.values():
            yield path, operation


def check(document, path: str, method: str, answer: httpx.Response) -> None:
    """The answer's status, media type, headers and content are those that the document gives."""
    documented = document["paths"][path][method]["responses"]
    assert str(answer.status_code) in documented, (path, answer.status_code, answer.text)
    response = documented[str(answer.status_code)]
    named = {name.lower() for name in response["headers"]}
    ours = {name for name in answer.headers if name.startswith("x-")} | {
        name for name in NAMED if name in answer.headers
    }
    assert ours <= named, (path, answer.status_code, ours - named)
    content = response.get("content", {})
    media_type = answer.headers.get("content-type", "").partition(";")[0]
    assert media_type in content or not (content or media_type)
    if media_type.endswith("json"):
        assert fits(content[media_type]["schema"], answer.json()), answer.text


def ask_all(settings, function, *requests):
    """Answers to (method, path, options) of a gateway whose pictures `function` makes."""

    async def run():
        async with client_of(create_app(settings, FakeBackend(function))) as client:
            return [
                await client.request(method, path, **options) for method, path, options in requests
            ]

    return asyncio.run(run())


def test_it_describes_every_route_and_nothing_else(document):
    assert {path for path, _ in operations(document)} == PATHS
    for path, operation in operations(document):
        assert operation["summary"], path
        names = {(one["name"], one["in"]) for one in operation["parameters"]}
        assert ("X-Request-ID", "header") in names, path
        assert (("id", "path") in names) == path.endswith("{id}")


@pytest.mark.parametrize(
    ("path", "kind"),
    [(path, kind) for path in POSTS for kind in STATUSES],
)
def test_every_error_of_the_tree_is_documented_where_it_can_be_met(settings, document, path, kind):
    async def failing(feeds):
        raise kind("why", 3.0) if issubclass(kind, RetryableError) else kind("why")

    (answer,) = ask_all(settings, failing, ("POST", path, {"json": RED}))
    status = STATUSES[kind][0]
    assert answer.status_code == (400 if path.startswith("/v1") and status == 422 else status)
    check(document, path, "post", answer)


@pytest.mark.parametrize("path", POSTS)
def test_every_way_to_ask_for_pictures_is_documented(settings, document, path):
    bodies = [RED, {}, RED | {"model": "other"}, {"prompt": "a red circle"}]
    bodies += [RED | {"num_images": 2}, RED | {"n": 2}, RED | {"format": "webp"}]
    requests = [("POST", path, {"json": body}) for body in bodies]
    headers = ({"Accept": "application/json"}, {"If-None-Match": "*"}, {"X-Request-ID": "a b"})
    requests += [("POST", path, {"json": RED, "headers": one}) for one in headers]
    requests += [("POST", path, {"content": b"[", "headers": {"Content-Type": "text/plain"}})]
    answers = ask_all(settings, grey, *requests)
    assert {answer.status_code for answer in answers} >= {200, 415}
    for answer in answers:
        check(document, path, "post", answer)


def test_every_way_to_look_something_up_is_documented(settings, document):
    bad = {"headers": {"X-Request-ID": "a b"}}
    paths = {path: path for path in ("/v1/models", "/livez", "/readyz", "/metrics")}
    paths |= {"/v1/models/tiny": "/v1/models/{id}", "/v1/models/no": "/v1/models/{id}"}
    requests = [("GET", path, options) for path in paths for options in ({}, bad)]
    for (_, path, _), answer in zip(requests, ask_all(settings, grey, *requests), strict=True):
        check(document, paths[path], "get", answer)


def test_what_a_gateway_says_before_its_model_is_loaded_is_documented(settings, document):
    async def run():
        transport = httpx.ASGITransport(create_app(settings, FakeBackend()))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            for path in PATHS - POSTS.keys():
                check(document, path, "get", await client.get(path))
            for path in POSTS:
                check(document, path, "post", await client.post(path, json=RED))

    asyncio.run(run())


def test_every_example_of_an_answer_fits_its_schema(document):
    seen = 0
    for path, operation in operations(document):
        for status, response in operation["responses"].items():
            for media_type, content in response.get("content", {}).items():
                examples = [one["value"] for one in content.get("examples", {}).values()]
                examples += [content["example"]] if "example" in content else []
                binary = content["schema"].get("format") == "binary"
                assert examples or binary, (path, status, media_type)
                assert all(fits(content["schema"], example) for example in examples), (path, status)
                seen += len(examples)
    assert seen > 30


@pytest.mark.parametrize("path", POSTS)
def test_every_example_of_a_request_is_one(settings, document, path):
    body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    assert {*body["schema"]["properties"]} == {*POSTS[path].model_fields}
    examples = [one["value"] for one in body["examples"].values()]
    assert len(examples) == 3
    for example in examples:
        POSTS[path].model_validate(example)


def test_a_route_that_can_ask_for_a_key_names_its_scheme(document):
    schemes = document["components"]["securitySchemes"]
    keyed = {path for path, operation in operations(document) if "security" in operation}
    assert keyed == {path for path, one in operations(document) if "401" in one["responses"]}
    for _, operation in operations(document):
        named = {name for one in operation.get("security", []) for name in one}
        assert named <= {*schemes}
    assert schemes["key"]["scheme"] == "bearer"


def test_a_refused_method_is_told_every_method_that_the_path_has(settings, document):
    paths = {path: path for path in PATHS} | {"/v1/models/{id}": "/v1/models/tiny"}
    requests = [("DELETE", path, {}) for path in paths.values()]
    for path, answer in zip(paths, ask_all(settings, grey, *requests), strict=True):
        allowed = {*answer.headers["allow"].split(", ")}
        documented = {method.upper() for method in document["paths"][path]}
        assert (answer.status_code, allowed - {"HEAD"}) == (405, documented), path
        assert ("HEAD" in allowed) == (path in ("/livez", "/readyz")), path


def test_every_object_of_a_body_has_a_name_so_that_a_client_has_one_type_of_it(whole):
    """Else a generated client has as many types of a problem as there are statuses."""
    contents = [
        content
        for _, operation in operations(whole)
        for part in (operation.get("requestBody", {}), *operation["responses"].values())
        for content in part.get("content", {}).values()
    ]
    schemas = [content["schema"] for content in contents]
    assert not [schema for schema in schemas if schema.get("type") == "object"]
    named = {schema["$ref"].rpartition("/")[2] for schema in schemas if "$ref" in schema}
    assert named | {"Model"} == {*whole["components"]["schemas"]}


def test_the_document_is_one_and_its_operations_have_names_of_their_own(whole, document):
    schemathesis.openapi.from_dict(whole).validate()  # by OpenAPI's own schema
    names = [operation["operationId"] for _, operation in operations(document)]
    assert sorted(names) == [*NAMES]
