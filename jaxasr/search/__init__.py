"""Encoded frames to token sequences."""
