"""PyTorch checkpoints, read without PyTorch."""
