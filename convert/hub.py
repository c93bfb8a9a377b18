"""A published model by name: download, verify, convert once, and from then on work without a network.

    NAME[@COMMIT][:PRECISION]    reazonspeech-k2-v2    reazonspeech-k2-v2:int8    org/repo@<40 hex digits>

NAME is a name of published.py, the repository that it stands for, or any `org/repo` of the hub that holds files which
the converters know. Two caches are kept: huggingface_hub's own, with the publisher's files, and ours ($JAXASR_CACHE),
with

    hub/<org>--<repo>/revision               the commit pinned at first use, where published.py pins none
    hub/<org>--<repo>/<commit>-<precision>/  hub.json (where from, which sha256) and a folder of links to the files
    models/<org>--<repo>/<commit>-<precision>-<version of jaxasr>/   the converted model directory

A file is verified against published.py, else against what the first download recorded, else against the hash that the
hub states for it (huggingface_hub itself compares sizes only).
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from jaxasr import __version__
from jaxasr.caches import cache_folder
from jaxasr.convert.published import MODELS, PRECISIONS, PublishedFile, PublishedModel
from jaxasr.errors import DownloadError

_COMMIT = re.compile(r"[0-9a-f]{40}")
_NAME = re.compile(r"(?P<name>[^@:]+)(@(?P<commit>[^:]*))?(:(?P<precision>.*))?")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_RECORD = "hub.json"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Request:
    """What a name stands for; `model` is None for a repository that published.py does not list."""

    name: str
    repository: str
    revision: str | None
    precision: str
    model: PublishedModel | None

    @property
    def folder(self) -> str:
        return self.repository.replace("/", "--")


@dataclass(frozen=True)
class _Remote:
    """What the hub says of one commit: its id and, per path, size and hash (sha256 for LFS, else git's blob sha1)."""

    commit: str
    files: dict[str, tuple[int | None, str | None]]


def fetch(
    name: str,
    precision: str | None = None,
    *,
    cache: str | os.PathLike[str] | None = None,
    endpoint: str | None = None,
) -> Path:
    """Download and verify the checkpoint files of `name`; return a folder that holds links to exactly these files.

    `precision` is float32 (default), int8 or int8-fp32; a name that ends in one (`NAME:int8`) decides. `cache` replaces
    $JAXASR_CACHE. `endpoint` is the hub's address (else HF_ENDPOINT, else the public hub). Raises DownloadError.
    """
    request = _parse(name, precision)
    root = Path(cache) if cache is not None else cache_folder()
    with _locked(root, request):
        return _fetch(request, root, endpoint)


def convert_once(
    name: str,
    precision: str | None = None,
    *,
    cache: str | os.PathLike[str] | None = None,
    endpoint: str | None = None,
) -> Path:
    """The model directory of the published model `name`: downloaded, verified and converted at the first call.

    Arguments as in `fetch`. Later calls return the converted directory without touching the network. Raises
    DownloadError, and what the conversion raises.
    """
    request = _parse(name, precision)
    root = Path(cache) if cache is not None else cache_folder()
    if directory := _converted(request, root):
        return directory
    with _locked(root, request):
        if directory := _converted(request, root):  # another process was faster
            return directory
        source = _fetch(request, root, endpoint)
        record = json.loads((source.parent / _RECORD).read_text(encoding="utf-8"))
        commit = record["revision"]
        directory = _model_directory(request, root, commit)
        directory.parent.mkdir(parents=True, exist_ok=True)
        _log.info("converting %s", request.name)
        from jaxasr.convert import convert_checkpoint  # only now: a converted model needs no converter

        convert_checkpoint(
            source,
            directory,
            config=request.model.config if request.model else None,
            overwrite=directory.exists(),
            origin=f"{request.repository}@{commit}",
            licence=record["licence"],
        )
        return directory


def _parse(name: str, precision: str | None) -> _Request:
    match = _NAME.fullmatch(name.strip())
    if not match:
        raise DownloadError(f"{name!r} is no model name: write NAME, NAME:PRECISION or org/repo@COMMIT")
    base, commit = match["name"], match["commit"]
    wanted = match["precision"] or precision or "float32"
    wanted = {"fp32": "float32"}.get(wanted, wanted)
    if commit is not None and not _COMMIT.fullmatch(commit):
        raise DownloadError(f"{name}: after @ stands a whole commit id of 40 hex digits, not {commit!r}")
    model = next((m for m in MODELS if base in (m.name, m.repository, PurePosixPath(m.repository).name)), None)
    if model is None and not _REPOSITORY.fullmatch(base):
        raise DownloadError(f"unknown model {name!r}: {_suggest(base)}")
    if wanted not in (model.files if model else PRECISIONS):
        have = ", ".join(model.files if model else PRECISIONS)
        raise DownloadError(f"{base} has no precision {wanted!r}; it has {have}")
    if model is None:
        _refuse_near_miss(base, commit)
        return _Request(base, base, commit, wanted, None)
    if commit is not None and commit != model.revision:
        # Another commit than the listed one: its hashes are not in the table, its files may be others.
        known = {key: tuple(PublishedFile(file.path) for file in files) for key, files in model.files.items()}
        model = replace(model, revision=commit, files=known)
    return _Request(base, model.repository, model.revision, wanted, model)


def _suggest(name: str) -> str:
    known = [model.name for model in MODELS] + [model.repository for model in MODELS]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(m.name for m in MODELS)}."
    return f"{hint} A model directory written by `jaxasr convert` or a hub repository org/repo is taken too"


def _refuse_near_miss(repository: str, commit: str | None) -> None:
    """A name one or two letters off a listed repository is a typo or a trap; only a stated commit shows intent."""
    for model in MODELS:
        if commit is None and _distance(repository.casefold(), model.repository.casefold()) <= 2:
            raise DownloadError(
                f"{repository} is not listed but {model.repository} is: did you mean that? "
                f"To use it all the same, name its commit: {repository}@COMMIT"
            )


def _distance(left: str, right: str) -> int:
    """Levenshtein's edit distance."""
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, start=1):
        previous, row[0] = row[0], i
        for j, b in enumerate(right, start=1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (a != b))
    return row[-1]


def _converted(request: _Request, root: Path) -> Path | None:
    commit = request.revision or _pinned(request, root)
    if commit is None:
        return None
    directory = _model_directory(request, root, commit)
    return directory if (directory / "manifest.json").is_file() else None


def _model_directory(request: _Request, root: Path, commit: str) -> Path:
    # The version is part of the name: what an older converter wrote is not taken for what this one writes.
    return root / "models" / request.folder / f"{commit[:12]}-{request.precision}-{__version__}"


def _pinned(request: _Request, root: Path) -> str | None:
    try:
        commit = (root / "hub" / request.folder / "revision").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return commit if _COMMIT.fullmatch(commit) else None


@contextlib.contextmanager
def _locked(root: Path, request: _Request) -> Iterator[None]:
    """One process at a time downloads and converts a repository; the lock ends with its process."""
    import filelock

    folder = root / "locks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / f"{request.folder}.lock")
        try:
            lock.acquire(timeout=1)
        except filelock.Timeout:
            _log.info("waiting for another process that downloads or converts %s", request.repository)
            lock.acquire()
    except OSError as error:
        raise DownloadError(f"the cache {root} cannot be written ({error.strerror}): set JAXASR_CACHE") from error
    try:
        yield
    finally:
        lock.release()


def _fetch(request: _Request, root: Path, endpoint: str | None) -> Path:
    commit = request.revision or _pinned(request, root)
    if commit and (folder := _verified(request, root, commit)):
        return folder
    with _hub(request) as hub:
        remote = hub.describe(commit, endpoint)
        if request.model:
            files = request.model.files[request.precision]
        else:
            files = tuple(map(PublishedFile, choose_files(remote.files, request.precision, request.name)))
        paths: dict[str, Path] = {}
        record: dict[str, dict[str, Any]] = {}
        earlier = _recorded(request, root, remote.commit)
        for file in files:
            paths[file.path], record[file.path] = _download(hub, remote, file, earlier.get(file.path), endpoint)
    try:
        return _link(request, root, remote.commit, paths, record)
    except OSError as error:
        raise DownloadError(f"the cache {root} cannot be written ({error.strerror}): set JAXASR_CACHE") from error


def _download(
    hub: _Hub, remote: _Remote, file: PublishedFile, earlier: dict[str, Any] | None, endpoint: str | None
) -> tuple[Path, dict[str, Any]]:
    """One file, verified; `earlier` is what the first download of it recorded. Returns its path and its record."""
    request = hub.request
    if file.path not in remote.files:
        raise DownloadError(f"{request.name}: the hub has no file {file.path} at commit {remote.commit}")
    size, stated = remote.files[file.path]
    expected = file.sha256 or (earlier or {}).get("sha256") or stated
    if stated and len(stated) == 64 and expected != stated:
        raise DownloadError(f"{request.name}: {file.path} is not what was pinned: {_versus(stated, expected)}")
    _log.info("downloading %s of %s (%.1f MB)", file.path, request.repository, (size or 0) / 1e6)
    path = hub.download(file.path, remote.commit, endpoint)
    sha256 = _verify(request, file.path, path, expected)
    against = "jaxasr" if file.sha256 else "first download" if earlier else "hub"
    return path, {"sha256": sha256, "size": path.stat().st_size, "verified_against": against}


def _folder(request: _Request, root: Path, commit: str) -> Path:
    return root / "hub" / request.folder / f"{commit[:12]}-{request.precision}"


def _links(request: _Request, folder: Path) -> Path:
    # Named like the repository: a converted model is called after the folder that held its checkpoint.
    return folder / PurePosixPath(request.repository).name


def _recorded(request: _Request, root: Path, commit: str) -> dict[str, Any]:
    """Per path, what an earlier download of this commit recorded (in any precision)."""
    found: dict[str, Any] = {}
    for record in sorted((root / "hub" / request.folder).glob(f"{commit[:12]}-*/{_RECORD}")):
        with contextlib.suppress(OSError, ValueError, KeyError):
            content = json.loads(record.read_text(encoding="utf-8"))
            if content["revision"] == commit:
                found |= content["files"]
    return found


def _verified(request: _Request, root: Path, commit: str) -> Path | None:
    """The folder of an earlier, complete download whose files are all still there and still what they were."""
    folder = _folder(request, root, commit)
    links = _links(request, folder)
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        whole = record["revision"] == commit and all(
            _hashes(links / PurePosixPath(path).name)[0] == entry["sha256"] for path, entry in record["files"].items()
        )
    except (OSError, ValueError, KeyError):
        return None
    return links if whole else None


def _link(request: _Request, root: Path, commit: str, paths: dict[str, Path], record: dict[str, Any]) -> Path:
    """Gather the files, which lie in folders of the hub's making, in one folder that holds nothing else."""
    folder = _folder(request, root, commit)
    links = _links(request, folder)
    shutil.rmtree(folder, ignore_errors=True)
    links.mkdir(parents=True)
    for name, path in paths.items():
        _place(path, links / PurePosixPath(name).name)
    content = {
        "repository": request.repository,
        "revision": commit,
        "pinned_by": "jaxasr or the name given" if request.revision else "first download",
        "licence": request.model.licence if request.model else "see the repository",
        "files": record,
    }
    _write(folder / _RECORD, json.dumps(content, indent=2) + "\n")
    if request.revision is None:
        _write(root / "hub" / request.folder / "revision", commit + "\n")
    return links


def _place(source: Path, target: Path) -> None:
    """A symbolic link where the system allows one (Windows may not), else a hard link, else a copy."""
    source = source.resolve()
    for way in (os.symlink, os.link, shutil.copyfile):
        try:
            way(source, target)
            return
        except OSError:
            if way is shutil.copyfile:
                raise


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _verify(request: _Request, name: str, path: Path, expected: str | None) -> str:
    """The file's sha256, after comparing it (or git's blob hash, 40 digits, as the hub states for small files)."""
    if not expected:
        raise DownloadError(f"{request.name}: the hub states no hash for {name}, so it cannot be verified")
    sha256, blob = _hashes(path)
    found = blob if len(expected) == 40 else sha256
    if found != expected:
        raise DownloadError(
            f"{request.name}: {name} is not what was pinned ({_versus(found, expected)}): delete {path.resolve()} "
            "and try again; if that does not help, do not use it"
        )
    return sha256


def _hashes(path: Path) -> tuple[str, str]:
    """sha256 and git's blob hash of a file."""
    sha256, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            sha256.update(piece)
            blob.update(piece)
    return sha256.hexdigest(), blob.hexdigest()


def _versus(found: str, expected: str | None) -> str:
    return f"hash {found[:16]}…, expected {(expected or 'none')[:16]}…"


def choose_files(paths: Iterable[str], precision: str, name: str) -> list[str]:
    """Of a repository's paths, those of one checkpoint that the converters know, its tokens last.

    The order that decides: a transducer's encoder, decoder and joiner, the largest epoch first; then a CTC model.onnx
    or ctc-*.onnx; then (float32 only) pretrained.pt; among equals the first by name. Raises DownloadError where
    nothing fits.
    """
    known = sorted(paths)
    for checkpoint in (*_trios(known, precision), *_ctc_models(known, precision), *_pretrained(known, precision)):
        parent = PurePosixPath(checkpoint[0]).parent
        beside = [path for path in known if path == str(parent / "tokens.txt")]
        lists = beside or [path for path in known if re.fullmatch(r"(.*/)?data/lang[^/]*/tokens\.txt", path)]
        if lists:
            return [*checkpoint, lists[0]]
    raise DownloadError(
        f"{name} holds no {precision} checkpoint that jaxasr knows (encoder, decoder and joiner, or model.onnx, or "
        "pretrained.pt, with tokens.txt)"
    )


def _trios(paths: list[str], precision: str) -> Iterator[list[str]]:
    for path in sorted(paths, key=lambda path: (-int((re.findall(r"epoch-(\d+)", path) or ["-1"])[0]), path)):
        match = re.fullmatch(r"((?:.*/)?)encoder([^/]*?)(\.int8)?\.onnx", path)
        if match and bool(match[3]) == (precision != "float32"):
            folder, stem, suffix = match[1], match[2], match[3] or ""
            joiner, decoder = f"{folder}joiner{stem}{suffix}.onnx", f"{folder}decoder{stem}.onnx"
            # Publishers often leave the small decoder in float32.
            if precision == "int8" and f"{folder}decoder{stem}.int8.onnx" in paths:
                decoder = f"{folder}decoder{stem}.int8.onnx"
            if joiner in paths and decoder in paths:
                yield [path, decoder, joiner]


def _ctc_models(paths: list[str], precision: str) -> Iterator[list[str]]:
    suffix = "" if precision == "float32" else r"\.int8"
    pattern = re.compile(rf"(.*/)?(model|ctc[^/]*?){suffix}\.onnx")
    return ([path] for path in paths if pattern.fullmatch(path) and (suffix or ".int8." not in path))


def _pretrained(paths: list[str], precision: str) -> Iterator[list[str]]:
    return ([path] for path in paths if precision == "float32" and PurePosixPath(path).name == "pretrained.pt")


@dataclass(frozen=True)
class _Hub:
    """The two questions that we put to huggingface_hub, with its errors put into one line each."""

    request: _Request
    module: Any

    def describe(self, commit: str | None, endpoint: str | None) -> _Remote:
        """Commit, sizes and hashes of the repository at `commit` (None: the newest)."""
        info = self._ask(
            lambda: self.module.HfApi(endpoint=endpoint).model_info(
                self.request.repository, revision=commit, files_metadata=True, timeout=20
            )
        )
        if not _COMMIT.fullmatch(info.sha or "") or (commit and info.sha != commit):
            raise DownloadError(f"{self.request.name}: the hub answered with commit {info.sha}, asked was {commit}")
        files = {}
        for entry in info.siblings or []:
            size, sha256 = entry.size, None
            if entry.lfs:
                size, sha256 = entry.lfs.size, entry.lfs.sha256
            files[entry.rfilename] = (size, sha256 or entry.blob_id)
        return _Remote(info.sha, files)

    def download(self, path: str, commit: str, endpoint: str | None) -> Path:
        """The local file of `path` at `commit`, in huggingface_hub's cache."""
        return Path(
            self._ask(
                lambda: self.module.hf_hub_download(self.request.repository, path, revision=commit, endpoint=endpoint)
            )
        )

    def _ask(self, question: Callable[[], Any]) -> Any:
        errors, request = self.module.errors, self.request
        try:
            return question()
        except errors.OfflineModeIsEnabled as error:
            raise DownloadError(
                f"{request.name} is not in the cache and HF_HUB_OFFLINE forbids to download it: unset it once, "
                "or give a model directory"
            ) from error
        except errors.RevisionNotFoundError as error:
            raise DownloadError(f"{request.name}: the hub knows no commit {request.revision}") from error
        except errors.GatedRepoError as error:
            raise DownloadError(
                f"{request.name}: its publisher asks for an agreement first: accept it on the hub and set HF_TOKEN"
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise DownloadError(
                f"{request.repository} is neither a folder here nor a public repository of the hub"
            ) from error
        except errors.EntryNotFoundError as error:
            raise DownloadError(f"{request.name}: a file is missing on the hub: {_first_line(error)}") from error
        except errors.HFValidationError as error:
            raise DownloadError(f"{request.name} is no name of a hub repository: {_first_line(error)}") from error
        # The rest are refused connections, time-outs, server errors and full disks; which class they are changes with
        # the library that huggingface_hub is built on.
        except Exception as error:
            raise DownloadError(
                f"{request.name} could not be downloaded ({_first_line(error)}): check the network and the disk's free "
                "space and try again, or give a model directory"
            ) from error


def _first_line(error: Exception) -> str:
    line = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line.strip()[:200]}" if line else type(error).__name__


@contextlib.contextmanager
def _hub(request: _Request) -> Iterator[_Hub]:
    """huggingface_hub, imported only now; its progress bars on terminals only, its warnings silent."""
    import huggingface_hub
    import huggingface_hub.errors
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    quiet = not sys.stderr.isatty() and not are_progress_bars_disabled()
    if quiet:
        disable_progress_bars()
    logger.setLevel(logging.ERROR)  # our own error says it in one line
    try:
        yield _Hub(request, huggingface_hub)
    finally:
        logger.setLevel(level)
        if quiet:
            enable_progress_bars()
