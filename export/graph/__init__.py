"""The one graph: its parts, number types, sizes, decoders, and the ONNX file."""
