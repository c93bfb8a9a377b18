"""The wing of icefall and sherpa-onnx: Zipformers from .pt checkpoints and from ONNX exports."""
