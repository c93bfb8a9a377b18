"""The folder of a training run: checkpoints, what decides whether a run may be resumed, the log, and stop requests."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from jaxasr.configuration import from_mapping, to_mapping
from jaxasr.errors import ConfigError, TrainingError
from jaxasr.files import reason, writing_file
from jaxasr.training.data import Example
from jaxasr.training.recipe import Recipe

if TYPE_CHECKING:
    from orbax.checkpoint import CheckpointManager

CHECKPOINTS, LOG, MODEL, RUN = "checkpoints", "log.jsonl", "model", "run.json"
KEPT_CHECKPOINTS = 2
# The fields of a recipe that may change when a run is resumed; all others decide what a step computes.
_FREE = ("steps", "checkpoint_steps", "evaluate_steps", "optimizer", "average", "joiner_bytes", "stored")

State = dict[str, Any]
Identity = dict[str, Any]


def identify(recipe: Recipe, examples: Sequence[Example], devices: int) -> Identity:
    """What a resumed run must share with the run that it continues, so that its steps see the same batches."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(f"{example.name}\t{example.seconds}\t{example.ids}\n".encode(errors="surrogateescape"))
    return {"recipe": _fixed_fields(recipe), "data": digest.hexdigest(), "devices": devices}


def _fixed_fields(recipe: Recipe) -> dict[str, Any]:
    """The fields of a recipe that a resumed run must share, as a mapping; how the model is searched is none of them."""
    mapping = {key: value for key, value in to_mapping(recipe).items() if key not in _FREE}
    if mapping["model"] is not None:
        mapping["model"] = {key: value for key, value in mapping["model"].items() if key != "search"}
    return mapping


class RunFolder:
    """What a run leaves in its folder: `checkpoints/`, `log.jsonl`, `run.json` (its identity) and `model/`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def model(self) -> Path:
        """Where the trained model is written."""
        return self.path / MODEL

    def has_checkpoint(self) -> bool:
        """Whether there is a run that can be resumed."""
        return any(entry.name.isdigit() for entry in (self.path / CHECKPOINTS).glob("*"))

    def require_checkpoint(self) -> None:
        """TrainingError where there is no checkpoint."""
        if not self.has_checkpoint():
            raise TrainingError(f"{self.path}: holds no checkpoint to resume; leave out resume")

    def save(self, step: int, state: State, identity: Identity) -> None:
        """Write a checkpoint; the one before stays until this one is whole. TrainingError where there is no room."""
        import orbax.checkpoint as ocp

        with writing_file(self.path / RUN, TrainingError) as write:
            write(json.dumps(identity, indent=1) + "\n")
        try:
            with self._checkpoints() as manager:
                manager.save(step, args=ocp.args.StandardSave(state))
                manager.wait_until_finished()
        except Exception as error:  # Orbax and TensorStore raise many kinds for one cause: a folder that takes no more
            raise TrainingError(
                f"{self.path / CHECKPOINTS}: cannot be written ({reason(error)}); make room and resume"
            ) from None

    def restore(self, abstract: State, identity: Identity) -> tuple[int, State]:
        """The newest checkpoint's step and state, shaped as `abstract`; TrainingError where none fits `identity`."""
        import orbax.checkpoint as ocp

        self.require_checkpoint()
        self._require_same(identity)
        with self._checkpoints() as manager:
            step = manager.latest_step()
            try:
                return step, manager.restore(step, args=ocp.args.StandardRestore(abstract))
            except Exception as error:
                raise TrainingError(
                    f"{self.path / CHECKPOINTS}: step {step} cannot be read into this recipe's model "
                    f"({reason(error)}); use the recipe that began it"
                ) from None

    def _checkpoints(self) -> CheckpointManager:
        import orbax.checkpoint as ocp

        options = ocp.CheckpointManagerOptions(
            max_to_keep=KEPT_CHECKPOINTS, create=True, enable_async_checkpointing=False
        )
        return ocp.CheckpointManager((self.path / CHECKPOINTS).absolute(), options=options)

    def _require_same(self, identity: Identity) -> None:
        """TrainingError that names what differs from the run that began here."""
        try:
            before = json.loads((self.path / RUN).read_text(encoding="utf-8"))
            before["recipe"]["model"], before["data"], before["devices"]
        except (OSError, ValueError, LookupError, TypeError):
            return  # absent or damaged: the shapes in the checkpoint decide
        # A field that a run of an earlier version does not name was at its default, if it was a field at all.
        with contextlib.suppress(ConfigError):
            stored = {"steps": 1, **before["recipe"]}
            before["recipe"] = _fixed_fields(from_mapping(Recipe, stored, str(self.path / RUN)))
        fields = identity["recipe"]
        changed = [f"the recipe's {key}" for key in fields if fields[key] != before["recipe"].get(key)]
        changed += ["the data"] * (identity["data"] != before["data"])
        changed += [f"the number of devices ({before['devices']})"] * (identity["devices"] != before["devices"])
        if changed:
            raise TrainingError(
                f"{self.path}: {', '.join(changed)} were others when this run began; give them as they were, or "
                "begin a new run with init set to its model"
            )


class Log:
    """`log.jsonl`: a JSON object a line, one for each step and each evaluation.

    A run that goes on after step `done` drops the lines of later steps.
    """

    def __init__(self, run: RunFolder, done: int) -> None:
        path = run.path / LOG
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() and done else []
        kept = [line for line in lines if _step_of(line) <= done]
        with writing_file(path, TrainingError) as write:  # a ConfigError would mean a bad recording
            write("".join(f"{line}\n" for line in kept))
        try:
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise TrainingError(f"{path}: cannot be written ({error.strerror})") from None

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a line; TrainingError where the disk is full."""
        try:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        except OSError as error:
            raise TrainingError(
                f"{self._file.name}: cannot be written ({error.strerror}); make room and resume"
            ) from None

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._file.close()


def _step_of(line: str) -> float:
    """The step that a line of the log is of; infinite where the line was cut off."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


@contextlib.contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A list that fills with the signals that ask the process to stop; the second of them stops it at once.

    SIGINT and SIGTERM, while the context lasts and in the main thread; elsewhere the list stays empty.
    """
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if len(asked) > 1:
            signal.signal(number, before[number])
            signal.raise_signal(number)

    numbers: tuple[int, ...] = (signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        if signal.getsignal(number) != signal.SIG_IGN:
            before[number] = signal.signal(number, note)
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
