"""A published model by name: download, verify, convert once, and from then on work without a network.

A name is what names.py reads: of configs/published, or of any repository of the hub that holds files which the
converters know. Two caches are kept: huggingface_hub's own, with the publisher's files, and ours ($JAXASR_CACHE), with

    hub/<org>--<repo>/revision               the commit pinned at first use, where configs/published pins none
    hub/<org>--<repo>/<commit>-<precision>/  hub.json (where from, which sha256) and a folder of links to the files
    models/<org>--<repo>/<commit>-<precision>-<version of jaxasr>/   the converted model directory

A file is verified against configs/published, else against what the first download recorded, else against the hash
that the hub states for it (huggingface_hub itself compares sizes only). Where HF_HUB_OFFLINE is set, huggingface_hub's
cache answers for the hub: it keeps every file under the hash that the hub stated.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from jaxasr import __version__
from jaxasr.caches import FORMAT, cache_folder
from jaxasr.convert.families import expected, find, refuse
from jaxasr.convert.hub.client import Hub, Remote, connect
from jaxasr.convert.hub.names import COMMIT, Request, parse
from jaxasr.convert.hub.published import Pin
from jaxasr.errors import CheckpointError, DownloadError, printable
from jaxasr.files import writing_file

_RECORD = "hub.json"

_log = logging.getLogger(__name__)


def convert_once(
    name: str,
    precision: str | None = None,
    *,
    cache: str | os.PathLike[str] | None = None,
    endpoint: str | None = None,
) -> Path:
    """The model directory of the published model `name`: downloaded, verified and converted at the first call.

    `precision`: float32 (default), int8 or int8-fp32; a name that ends in one (`NAME:int8`) decides.
    `cache`: replaces $JAXASR_CACHE.
    `endpoint`: the hub's address; HF_ENDPOINT by default, else the public hub.

    Later calls return the converted directory without touching the network. Raises DownloadError, and what the
    conversion raises.
    """
    request = parse(name, precision)
    root = Path(cache) if cache is not None else cache_folder()
    if directory := _converted(request, root):
        return directory
    with _locked(root, request):
        if directory := _converted(request, root):  # another process was faster
            return directory
        source = download(request, root, endpoint)
        record = json.loads((source.parent / _RECORD).read_text(encoding="utf-8"))
        commit = record["revision"]
        directory = _model_directory(request, root, commit)
        directory.parent.mkdir(parents=True, exist_ok=True)
        _log.info("converting %s", request.name)
        from jaxasr.convert import convert_checkpoint  # only now: a converted model needs no converter

        convert_checkpoint(
            source,
            directory,
            precision=request.precision,
            config=request.model.config if request.model else None,
            family=request.model.family if request.model else None,
            overwrite=directory.exists(),
            origin=f"{request.repository}@{commit}",
            licence=record["licence"],
        )
        return directory


def _converted(request: Request, root: Path) -> Path | None:
    commit = request.revision or _pinned(request, root)
    if commit is None:
        return None
    directory = _model_directory(request, root, commit)
    return directory if (directory / "manifest.json").is_file() else None


def _model_directory(request: Request, root: Path, commit: str) -> Path:
    # Version and format are part of the name: what an older converter wrote is not taken for what this one writes.
    name = f"{commit[:12]}-{request.precision}-{__version__}-{FORMAT}"
    return root / "models" / request.folder / name


def _pinned(request: Request, root: Path) -> str | None:
    try:
        commit = (root / "hub" / request.folder / "revision").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return commit if COMMIT.fullmatch(commit) else None


@contextlib.contextmanager
def _locked(root: Path, request: Request) -> Iterator[None]:
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


def download(request: Request, root: Path, endpoint: str | None = None) -> Path:
    """A folder of links to exactly the files of one checkpoint, downloaded if they are not there and verified.

    `root`: the folder of our cache. DownloadError for what cannot be had, or is not what was pinned.
    """
    commit = request.revision or _pinned(request, root)
    if commit and (folder := _verified(request, root, commit)):
        return folder
    with connect(request) as hub:
        remote = hub.cached(commit) if hub.offline else hub.describe(commit, endpoint)
        if request.model:
            files = request.model.precisions[request.precision]
        else:
            files = tuple(str(path) for path in _chosen(hub, remote))
        paths: dict[str, Path] = {}
        record: dict[str, dict[str, Any]] = {}
        earlier = _recorded(request, root, remote.commit)
        for file in files:
            pin = request.model.pin(file) if request.model else Pin()
            paths[file], record[file] = _download(hub, remote, file, pin, earlier.get(file), endpoint)
            try:
                refuse(paths[file])
            except CheckpointError as error:
                raise DownloadError(f"{request.name}: {error}") from None
    try:
        return _link(request, root, remote.commit, paths, record)
    except OSError as error:
        raise DownloadError(f"the cache {root} cannot be written ({error.strerror}): set JAXASR_CACHE") from error


def choose_files(paths: Iterable[str], request: Request) -> list[PurePosixPath]:
    """Of a repository's `paths`, those of the first checkpoint of the precision asked for, its vocabulary last."""
    for candidate in find({PurePosixPath(path) for path in paths}, request.precision):
        if candidate.precision == request.precision and not candidate.lacks:
            return [*candidate.files, *([candidate.tokens] if candidate.tokens else [])]
    raise DownloadError(
        f"{request.name} holds no {request.precision} checkpoint that jaxasr knows: expected {expected()}"
    )


def _chosen(hub: Hub, remote: Remote) -> list[PurePosixPath]:
    """`choose_files`; offline, what a part of a repository does not hold may be in the rest."""
    try:
        return choose_files(remote.files, hub.request)
    except DownloadError:
        if remote.offline:
            raise hub.not_cached() from None
        raise


def _download(
    hub: Hub, remote: Remote, file: str, pin: Pin, earlier: dict[str, Any] | None, endpoint: str | None
) -> tuple[Path, dict[str, Any]]:
    """One file, verified; `earlier` is what the first download of it recorded. Returns its path and its record."""
    request = hub.request
    if file not in remote.files:
        if remote.offline:
            raise hub.not_cached()
        raise DownloadError(f"{request.name}: the hub has no file {file} at commit {remote.commit}")
    size, stated = remote.files[file]
    expected = pin.sha256 or (earlier or {}).get("sha256") or stated
    if stated and len(stated) == 64 and expected != stated:
        raise DownloadError(f"{request.name}: {file} is not what was pinned: {_versus(stated, expected)}")
    done = "taking from the hub's cache" if remote.offline else "downloading"
    _log.info("%s %s of %s (%.1f MB)", done, printable(file), request.repository, (size or 0) / 1e6)
    path = hub.download(file, remote.commit, endpoint)
    if remote.offline and not expected:
        sha256, against = _hashes(path)[0], "nothing: huggingface_hub's cache, offline"
    else:
        sha256 = _verify(request, file, path, expected)
        against = "jaxasr" if pin.sha256 else "first download" if earlier else "hub"
    return path, {"sha256": sha256, "size": path.stat().st_size, "verified_against": against}


def _folder(request: Request, root: Path, commit: str) -> Path:
    return root / "hub" / request.folder / f"{commit[:12]}-{request.precision}"


def _links(request: Request, folder: Path) -> Path:
    # Named like the repository: a converted model is called after the folder that held its checkpoint.
    return folder / PurePosixPath(request.repository).name


def _recorded(request: Request, root: Path, commit: str) -> dict[str, Any]:
    """Per path, what an earlier download of this commit recorded (in any precision)."""
    found: dict[str, Any] = {}
    for record in sorted((root / "hub" / request.folder).glob(f"{commit[:12]}-*/{_RECORD}")):
        with contextlib.suppress(OSError, ValueError, KeyError):
            content = json.loads(record.read_text(encoding="utf-8"))
            if content["revision"] == commit:
                found |= content["files"]
    return found


def _verified(request: Request, root: Path, commit: str) -> Path | None:
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


def _link(request: Request, root: Path, commit: str, paths: dict[str, Path], record: dict[str, Any]) -> Path:
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
    with writing_file(path, DownloadError) as write:
        write(text)


def _verify(request: Request, name: str, path: Path, expected: str | None) -> str:
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
