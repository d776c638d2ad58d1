"""TensorRT engines: built, refitted, measured, added to a published version."""
