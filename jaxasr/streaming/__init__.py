"""Streams: recordings that are recognised while they are heard, many of them in the slots of one compiled program."""

from jaxasr.streaming.session import Stream, Streams

__all__ = ["Stream", "Streams"]
