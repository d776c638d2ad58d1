"""BentoML: adaptive batching in a service of its own, behind one that takes single requests.

This is the arrangement of its page on adaptive batching for requests of several parameters. The
model is chosen by the variable MODEL, since `bentoml serve` takes no arguments for a service.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import bentoml
from picture import MAX_BATCH, NULL_PICTURE, Shapes
from pydantic import BaseModel

NULL = os.environ.get("MODEL", "null") == "null"


class Row(BaseModel):
    """One request."""

    prompt: str
    seed: int


QUIET = {"access": {"enabled": False}}  # no server here writes a line for each request


@bentoml.service(workers=1, traffic={"timeout": 60}, logging=QUIET)
class Drawing:
    """The model, in batches."""

    def __init__(self):
        self.shapes = None if NULL else Shapes()

    @bentoml.api(batchable=True, max_batch_size=MAX_BATCH, max_latency_ms=60_000)
    def draw(self, rows: list[Row]) -> list[bytes]:
        if NULL:
            return [NULL_PICTURE for _ in rows]
        inputs = [self.shapes.inputs(row.prompt, row.seed) for row in rows]
        pictures = self.shapes.draw(inputs)
        return [
            self.shapes.png(pixels, row.prompt, row.seed)
            for row, pixels in zip(rows, pictures, strict=True)
        ]


@bentoml.service(workers=1, traffic={"timeout": 60}, logging=QUIET)
class Pictures:
    """Single requests."""

    drawing = bentoml.depends(Drawing)

    @bentoml.api(route="/generate")
    async def generate(self, prompt: str, seed: int, format: str, ctx: bentoml.Context) -> bytes:
        (picture,) = await self.drawing.to_async.draw([Row(prompt=prompt, seed=seed)])
        return picture
