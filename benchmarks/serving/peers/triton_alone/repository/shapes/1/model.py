"""Triton's Python back end with the shapes model: a batch of Triton's is one call of the graph."""

import os
import sys

import numpy as np
import triton_python_backend_utils as triton

sys.path += os.environ["PEERS_PATH"].split(":")  # of PYTHONPATH the stub keeps one folder alone
from picture import Shapes


class TritonPythonModel:
    def initialize(self, args):
        self.shapes = Shapes()

    def execute(self, requests):
        asked = [(_value(one, "prompt").decode(), int(_value(one, "seed"))) for one in requests]
        drawn = self.shapes.draw([self.shapes.inputs(prompt, seed) for prompt, seed in asked])
        files = [
            self.shapes.png(pixels, prompt, seed)
            for pixels, (prompt, seed) in zip(drawn, asked, strict=True)
        ]
        return [
            triton.InferenceResponse(
                [triton.Tensor("picture", np.frombuffer(file, np.uint8)[None])]
            )
            for file in files
        ]


def _value(request, name):
    return triton.get_input_tensor_by_name(request, name).as_numpy()[0, 0]
