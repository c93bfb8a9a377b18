"""From a name or a path to a ready recognizer."""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
from concurrent.futures import Future
from importlib.resources import files
from pathlib import Path
from typing import Any

from jaxasr import store
from jaxasr.errors import ModelError
from jaxasr.recognizer import Recognizer

logger = logging.getLogger("jaxasr")

EMBEDDED = "embedded"
# What is said wherever the model inside the package is taken without having been asked for.
NOTICE = (
    "no --model is given: the small one inside jaxasr knows English letters, digits, numbers and dates only; "
    "for all words: --model librispeech-zipformer-medium (a download, once)"
)


def load_model(
    name_or_path: str | os.PathLike[str] | None = None,
    *,
    dtype: str = "float32",
    batch_seconds: float | None = None,
    blank_penalty: float = 0.0,
    search: str | None = None,
    head: str | None = None,
    beam: int | None = None,
    pad_before: float | None = None,
    pad_after: float | None = None,
    precision: str = "float32",
    verify: bool = True,
    lazy: bool = False,
) -> Recognizer:
    """Load a model directory, or a published model by its name (downloaded and converted once), ready to transcribe.

    Without a name, or by the name "embedded", it is the small one inside the package; without, a line of the log says
    what that knows.

    `dtype`: float32, bfloat16 or float16. `batch_seconds`: sound that one batch may hold. `search`: greedy,
    beam or joint. `head`: transducer or ctc. `beam`: hypotheses that a search keeps, 1 for greedy search. All three by
    the model if unset, as `ModelConfig.choose_search` has it.
    `pad_before`, `pad_after`: silence around clips (s) instead of the model's own. `precision`: which of a published
    model's files to take. `verify`: check every hash. `lazy`: return while the arrays are still being read and compile
    meanwhile; damage then shows at the first transcript. Raises a JaxasrError whose message is one line.
    """
    if name_or_path is None:
        logger.warning(NOTICE)
    # The package's own without a name, also where a folder of the name lies in the working directory.
    directory = _embedded() if name_or_path is None else locate(name_or_path, precision)
    stored = store.open_model(directory, verify=verify)
    params: Future[dict[str, Any]] = Future()
    # No daemon: a process that ends while TensorStore reads would abort.
    reader = threading.Thread(target=_fulfil, args=(params, stored, verify), name="jaxasr-params")
    reader.start()
    if not lazy:
        params.result()
    padding = {
        key: value for key, value in (("silence_before", pad_before), ("silence_after", pad_after)) if value is not None
    }
    config = dataclasses.replace(stored.config, audio=dataclasses.replace(stored.config.audio, **padding))
    return Recognizer(
        config,
        params,
        stored.tokens,
        dtype=dtype,
        batch_seconds=batch_seconds,
        blank_penalty=blank_penalty,
        search=search,
        head=head,
        beam=beam,
    )


def locate(name_or_path: str | os.PathLike[str], precision: str = "float32") -> Path:
    """The model directory behind a path, a published name or "embedded"; an existing path is always meant as a path."""
    path = Path(name_or_path)
    if path.exists():
        if not store.is_model_directory(path):
            raise ModelError(f"{path} is no model directory: make one with `jaxasr convert {path} OUT_DIR`")
        return path
    if str(name_or_path) == EMBEDDED:
        return _embedded()
    from jaxasr.convert.hub import downloads

    return downloads.convert_once(str(name_or_path), precision=precision)


def _embedded() -> Path:
    return Path(str(files("jaxasr") / EMBEDDED))


def _fulfil(params: Future[dict[str, Any]], stored: store.StoredModel, verify: bool) -> None:
    try:
        params.set_result(stored.params(verify=verify))
    except BaseException as error:  # whatever it is, it belongs to who waits for the parameters
        params.set_exception(error)
