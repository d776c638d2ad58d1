"""LitServe, as its documentation advises for many small requests: batching on, ZeroMQ between its
processes (`fast_queue`), one worker for the one device, one server in front of it.

`batch_timeout` 0, its default, takes what waits and waits for no company.

python server.py null|shapes PORT
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import litserve
from fastapi import Response
from picture import MAX_BATCH, NULL_PICTURE, Shapes


class NullApi(litserve.LitAPI):
    """One fixed picture."""

    def setup(self, device):
        pass

    def decode_request(self, request):
        return request["seed"]

    def batch(self, inputs):
        return inputs

    def predict(self, seeds):
        return [NULL_PICTURE for _ in seeds]

    def unbatch(self, output):
        return output

    def encode_response(self, output):
        return Response(output, media_type="application/octet-stream")


class ShapesApi(litserve.LitAPI):
    """The shapes model; LitServe's worker does all of it, the server only passes messages on."""

    def setup(self, device):
        self.shapes = Shapes()

    def decode_request(self, request):
        prompt, seed = request["prompt"], request["seed"]
        return prompt, seed, self.shapes.inputs(prompt, seed)

    def batch(self, inputs):
        return inputs

    def predict(self, rows):
        pictures = self.shapes.draw([inputs for _, _, inputs in rows])
        return [(*row[:2], pixels) for row, pixels in zip(rows, pictures, strict=True)]

    def unbatch(self, output):
        return output

    def encode_response(self, output):
        prompt, seed, pixels = output
        return Response(self.shapes.png(pixels, prompt, seed), media_type="image/png")


def main():
    model, port = sys.argv[1], int(sys.argv[2])
    kind = NullApi if model == "null" else ShapesApi
    api = kind(max_batch_size=MAX_BATCH, batch_timeout=0.0, api_path="/generate")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(
        host="127.0.0.1",
        port=port,
        num_api_servers=1,
        log_level="warning",
        access_log=False,
        generate_client_file=False,
    )


if __name__ == "__main__":
    main()
