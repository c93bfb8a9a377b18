"""The errors that jaxasr raises on purpose; every message is one line that says what is wrong and what to do."""

from __future__ import annotations


class JaxasrError(Exception):
    """Base of every error that a user may meet; the command line prints its message without a traceback."""


class CheckpointError(JaxasrError):
    """A publisher's file is broken, unsafe, of another kind, or does not fit the architecture."""


class ConfigError(JaxasrError):
    """A configuration or an option has an unknown, missing or impossible value."""


class AudioError(JaxasrError):
    """An audio input cannot be found, opened or decoded."""


class ModelError(JaxasrError):
    """A model directory is missing, incomplete or damaged."""


class DownloadError(JaxasrError):
    """A published model cannot be fetched or is not what was pinned."""


class TrainingError(JaxasrError):
    """A training run that cannot go on."""
