"""FastAPI and uvicorn alone, one process: as one would write it in an afternoon, and well.

The model runs in FastAPI's thread pool behind a lock, since one call already uses all cores; the
PNG is written in the pool too, beside the next call. No batching, no queue limit, no deadlines.

python server.py null|shapes PORT
"""

import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import uvicorn
from fastapi import FastAPI, Response
from fastapi.concurrency import run_in_threadpool
from picture import NULL_PICTURE, Shapes
from pydantic import BaseModel


class Body(BaseModel):
    prompt: str
    seed: int
    format: str


def null_app():
    app = FastAPI()

    @app.post("/generate", response_class=Response)
    async def generate(body: Body):
        return Response(NULL_PICTURE, media_type="application/octet-stream")

    return app


def shapes_app():
    app, shapes, lock = FastAPI(), Shapes(), threading.Lock()

    def draw(prompt, seed):
        row = shapes.inputs(prompt, seed)
        with lock:
            (pixels,) = shapes.draw([row])
        return shapes.png(pixels, prompt, seed)

    @app.post("/generate", response_class=Response)
    async def generate(body: Body):
        png = await run_in_threadpool(draw, body.prompt, body.seed)
        return Response(png, media_type="image/png")

    return app


def main():
    model, port = sys.argv[1], int(sys.argv[2])
    app = null_app() if model == "null" else shapes_app()
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
