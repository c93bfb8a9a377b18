"""Frames to encoded frames, one file per architecture."""
