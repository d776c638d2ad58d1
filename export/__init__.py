"""One-step student to model repository: one graph, one ONNX file, the gate, the Triton layout."""
