"""What is asked of every server, and the digests of the right answers."""

import hashlib
import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from load import Answer, Ask

sys.path.insert(0, str(Path(__file__).parent / "peers"))

from picture import NULL_PICTURE, Shapes

PROMPTS = ("a small red circle on the left", "a blue square", "a large green triangle", "a shape")
FORMATS = {"null": "raw", "shapes": "png"}
COUNT = 512  # different requests: more than any server holds at a time, so none is asked twice


def rows(count: int = COUNT) -> Iterator[tuple[str, int]]:
    """Prompts and seeds."""
    return ((PROMPTS[seed % len(PROMPTS)], seed) for seed in range(count))


def digests(model: str, count: int = COUNT) -> list[bytes]:
    """SHA-256 of the pictures of `rows`, each drawn alone, without any server."""
    if model == "null":
        return [hashlib.sha256(NULL_PICTURE).digest()] * count
    shapes = Shapes()
    found = []
    for prompt, seed in rows(count):
        (pixels,) = shapes.draw([shapes.inputs(prompt, seed)])
        found.append(hashlib.sha256(shapes.png(pixels, prompt, seed)).digest())
    return found


def asks(
    model: str, right: list[bytes], triton: bool = False, headers: str = "", format: str = ""
) -> list[Ask]:
    """The requests with their answers' digests; `headers` are lines that end in CR LF."""
    write = _to_triton if triton else partial(_to_others, format or FORMATS[model])
    return [
        Ask(write(model, prompt, seed, headers), digest)
        for (prompt, seed), digest in zip(rows(len(right)), right, strict=True)
    ]


def triton_picture(answer: Answer) -> bytes:
    """The picture after the JSON head of an answer of Triton's."""
    return answer.body[int(answer.headers.get(b"inference-header-content-length", b"0")) :]


def _to_others(format: str, model: str, prompt: str, seed: int, headers: str) -> bytes:
    return _post("/generate", {"prompt": prompt, "seed": seed, "format": format}, headers)


def _to_triton(model: str, prompt: str, seed: int, headers: str) -> bytes:
    """KServe's protocol over HTTP: JSON in, the picture as plain bytes out."""
    inputs = [
        {"name": "prompt", "datatype": "BYTES", "shape": [1, 1], "data": [prompt]},
        {"name": "seed", "datatype": "UINT64", "shape": [1, 1], "data": [seed]},
    ]
    outputs = [{"name": "picture", "parameters": {"binary_data": True}}]
    return _post(f"/v2/models/{model}/infer", {"inputs": inputs, "outputs": outputs}, headers)


def _post(path: str, body: dict[str, object], headers: str) -> bytes:
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"{headers}Content-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content
