"""ONNX models, read without onnx and without a runtime."""
