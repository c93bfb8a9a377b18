"""Waveform to frames."""
