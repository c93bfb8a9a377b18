"""Smaller models from trained ones: quantization after training, and what it costs."""
