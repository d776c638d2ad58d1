"""Ray Serve: batching by its decorator and asynchronous methods, as its guides advise.

It is started in two ways: as it comes, and in the high-throughput mode of its page on KubeRay,
RAY_SERVE_THROUGHPUT_OPTIMIZED=1 and RAY_SERVE_ENABLE_HA_PROXY=1: then HAProxy asks the replica
without a proxy in Python between.

python server.py null|shapes PORT
"""

import signal
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import ray
from picture import MAX_BATCH, NULL_PICTURE, Shapes
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

ONGOING = 1000  # its default of 5 would keep batches from filling


@serve.deployment(max_ongoing_requests=ONGOING)
class NullModel:
    """One fixed picture."""

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=0.0)
    async def predict(self, seeds):
        return [NULL_PICTURE for _ in seeds]

    async def __call__(self, request: Request):
        body = await request.json()
        picture = await self.predict(body["seed"])
        return Response(picture, media_type="application/octet-stream")


@serve.deployment(max_ongoing_requests=ONGOING)
class ShapesModel:
    """The shapes model."""

    def __init__(self):
        self.shapes = Shapes()

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=0.0)
    async def predict(self, rows):
        return self.shapes.draw(rows)

    async def __call__(self, request: Request):
        body = await request.json()
        prompt, seed = body["prompt"], body["seed"]
        pixels = await self.predict(self.shapes.inputs(prompt, seed))
        return Response(self.shapes.png(pixels, prompt, seed), media_type="image/png")


def main():
    model, port = sys.argv[1], int(sys.argv[2])
    left = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: left.set())
    paths = {"PYTHONPATH": ":".join(sys.path)}
    ray.init(
        include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": paths}, num_cpus=4
    )
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    kind = NullModel if model == "null" else ShapesModel
    serve.run(kind.bind(), route_prefix="/generate")
    left.wait()
    ray.shutdown()


if __name__ == "__main__":
    main()
