"""Files and folders: written whole or not at all, hashed, read as yaml; and the line that a failure is reported by."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from jaxasr.errors import ConfigError, JaxasrError

_POINTER = b"version https://git-lfs"  # followed by .github.com/spec/v1, the object's hash and its size


def reason(error: BaseException) -> str:
    """What a library's error says, in one line of at most 200 characters: the system's words if it has any.

    An error that says nothing is named by its type.
    """
    message = str(getattr(error, "strerror", None) or error)  # PyAV's errors have the words too, and are no OSError
    return " ".join(message.split())[:200] or type(error).__name__


def file_hash(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's content, in hex digits. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_utf8(path: str | os.PathLike[str], error: type[JaxasrError]) -> None:
    """Raise `error` for a path that is not UTF-8: TensorStore reads and writes arrays in no such folder."""
    try:
        os.path.abspath(path).encode()
    except UnicodeEncodeError:
        raise error(f"{os.fspath(path)}: the folder's path is not UTF-8; rename it, or choose another folder") from None


def refuse_pointer(path: str | os.PathLike[str], error: type[JaxasrError]) -> None:
    """Raise `error` where the file `path` is git-lfs's note of a file instead of the file, whatever its name."""
    with contextlib.suppress(OSError, ValueError):
        # A pointer has about 130 bytes. The size of a pipe or a device is 0, and neither is opened.
        if not 0 < os.stat(path).st_size <= 1024:
            return
        with open(path, "rb") as file:
            head = file.read(len(_POINTER))
        if head == _POINTER:
            raise error(f"{os.fspath(path)}: a git-lfs pointer in the place of the file: run `git lfs pull`")


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """What a yaml file holds, as mappings, lists and scalars. Raises ConfigError."""
    import yaml

    refuse_pointer(path, ConfigError)
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{os.fspath(path)} cannot be read ({reason(error)})") from None
    except (yaml.YAMLError, RecursionError):
        raise ConfigError(f"{os.fspath(path)} is not valid yaml") from None


@contextlib.contextmanager
def writing_file(
    path: str | os.PathLike[str], error: type[JaxasrError] = ConfigError
) -> Iterator[Callable[[str], None]]:
    """A function that appends text to the file `path`, which appears when the block ends and not at all if it fails.

    The text goes to a sibling that is renamed, in UTF-8. Devices and pipes are written to directly. What cannot be
    written raises `error`.
    """
    target = Path(os.path.realpath(path))
    with _reported(path, error):
        direct = target.exists() and not target.is_file()
        part = target if direct else target.with_name(f".{secrets.token_hex(6)}.part")
        file = open(part, "w", encoding="utf-8", errors="surrogateescape", newline="\n")

    def write(text: str) -> None:
        with _reported(path, error):
            file.write(text)

    try:
        yield write
        with _reported(path, error):
            file.close()
            if not direct:
                os.replace(part, target)
    finally:
        # After a failure the buffer may hold what cannot be written.
        with contextlib.suppress(OSError):
            file.close()
        if not direct:
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write bytes to, which becomes `path` when the block ends and vanishes if it fails. Raises OSError."""
    part = Path(path).with_name(f".{secrets.token_hex(6)}.part")
    try:
        with open(part, "wb") as file:
            yield file
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def writing_folder(path: str | os.PathLike[str], error: type[JaxasrError] = ConfigError) -> Iterator[Path]:
    """A temporary sibling that becomes the folder `path` when the block ends and vanishes if it fails, Ctrl-C included.

    A folder that stands there already is replaced. Every OSError of the block raises `error`.
    """
    whole = Path(os.path.abspath(path))
    folder, replaced = (whole.with_name(f".{whole.name}.{secrets.token_hex(6)}") for _ in range(2))
    try:
        with _reported(path, error):
            folder.mkdir(parents=True)
            yield folder
            if whole.exists():
                whole.rename(replaced)
            folder.rename(whole)
    finally:
        if replaced.exists() and not whole.exists():
            replaced.rename(whole)
        for left in (replaced, folder):
            shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def _reported(path: str | os.PathLike[str], error: type[JaxasrError]) -> Iterator[None]:
    try:
        yield
    except OSError as raised:
        raise error(f"{os.fspath(path)}: cannot be written ({reason(raised)}); choose another path") from None
