"""The hub's answers: what a repository holds, and its files, with the library's errors put into one line each."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from jaxasr.convert.families import DEPTH, list_names
from jaxasr.convert.hub.names import COMMIT, Request
from jaxasr.errors import DownloadError
from jaxasr.files import reason

Answer = TypeVar("Answer")
# The hub's name of a file's content, under which its cache keeps it: sha256 of large files, else git's blob sha1.
_DIGEST = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")


@dataclass(frozen=True)
class Remote:
    """What the hub says of one commit: its id and, per path, size and hash (sha256 for LFS, else git's blob sha1).

    `offline`: huggingface_hub's cache says it instead, and knows no hash of files that it had to copy.
    """

    commit: str
    files: dict[str, tuple[int | None, str | None]]
    offline: bool = False


@dataclass(frozen=True)
class Hub:
    """The questions that we put to huggingface_hub, with its errors put into one line each."""

    request: Request
    module: Any

    @property
    def offline(self) -> bool:
        """Whether the user forbids to ask the hub (HF_HUB_OFFLINE)."""
        return bool(self.module.constants.HF_HUB_OFFLINE)

    def cached(self, commit: str | None) -> Remote:
        """What huggingface_hub's cache holds of the repository at `commit` (None: of its main branch)."""
        folder = Path(self.module.constants.HF_HUB_CACHE) / f"models--{self.request.folder}"
        commit = commit or _cached_commit(folder)
        snapshot = folder / "snapshots" / (commit or "none")
        names = list_names(snapshot, DEPTH)
        if commit is None or not names:
            raise self.not_cached()
        files: dict[str, tuple[int | None, str | None]] = {}
        for name in names:
            blob = (snapshot / name).resolve()
            digest = blob.name if blob.parent.name == "blobs" and _DIGEST.fullmatch(blob.name) else None
            files[str(name)] = (blob.stat().st_size, digest)
        return Remote(commit, files, offline=True)

    def not_cached(self) -> DownloadError:
        """The error for what the cache lacks while the hub may not be asked."""
        return DownloadError(
            f"{self.request.name} is not in the cache and HF_HUB_OFFLINE forbids to download it: unset it once, "
            "or give a model directory"
        )

    def describe(self, commit: str | None, endpoint: str | None) -> Remote:
        """Commit, sizes and hashes of the repository at `commit` (None: the newest)."""
        info = self._ask(
            lambda: self.module.HfApi(endpoint=endpoint).model_info(
                self.request.repository, revision=commit, files_metadata=True, timeout=20
            ),
            endpoint,
        )
        if not COMMIT.fullmatch(info.sha or "") or (commit and info.sha != commit):
            raise DownloadError(f"{self.request.name}: the hub answered with commit {info.sha}, asked was {commit}")
        files = {}
        for entry in info.siblings or []:
            size, sha256 = entry.size, None
            if entry.lfs:
                size, sha256 = entry.lfs.size, entry.lfs.sha256
            files[entry.rfilename] = (size, sha256 or entry.blob_id)
        return Remote(info.sha, files)

    def download(self, path: str, commit: str, endpoint: str | None) -> Path:
        """The local file of `path` at `commit`, in huggingface_hub's cache."""
        return Path(
            self._ask(
                lambda: self.module.hf_hub_download(self.request.repository, path, revision=commit, endpoint=endpoint),
                endpoint,
            )
        )

    def _ask(self, question: Callable[[], Answer], endpoint: str | None) -> Answer:
        errors, request = self.module.errors, self.request
        try:
            return question()
        except errors.OfflineModeIsEnabled as error:
            raise self.not_cached() from error
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
        except errors.LocalEntryNotFoundError as error:  # what was tried instead is its cause
            raise self._unreachable(error.__cause__ or error, endpoint) from error
        except errors.EntryNotFoundError as error:
            raise DownloadError(f"{request.name}: a file is missing on the hub: {reason(error)}") from error
        except errors.HFValidationError as error:
            raise DownloadError(f"{request.name} is no name of a hub repository: {reason(error)}") from error
        # The rest are refused connections, time-outs, server errors and full disks; which class they are changes with
        # the library that huggingface_hub is built on.
        except Exception as error:
            raise self._unreachable(error, endpoint) from error

    def _unreachable(self, error: BaseException, endpoint: str | None) -> DownloadError:
        address = endpoint or self.module.constants.ENDPOINT
        return DownloadError(
            f"{self.request.name} could not be downloaded from {address} ({reason(error)}): check the network and the "
            "disk's free space and try again, or give a model directory"
        )


def _cached_commit(folder: Path) -> str | None:
    """The commit of the main branch when the cache last asked for it, else the only one there is."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        commit = (folder / "refs" / "main").read_text(encoding="ascii").strip()
        if COMMIT.fullmatch(commit):
            return commit
    commits = [each.name for each in folder.glob("snapshots/*") if COMMIT.fullmatch(each.name)]
    return commits[0] if len(commits) == 1 else None


@contextlib.contextmanager
def connect(request: Request) -> Iterator[Hub]:
    """huggingface_hub, imported only now; its progress bars on terminals only, its warnings silent."""
    import huggingface_hub
    import huggingface_hub.constants
    import huggingface_hub.errors
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    quiet = not sys.stderr.isatty() and not are_progress_bars_disabled()
    if quiet:
        disable_progress_bars()
    logger.setLevel(logging.ERROR)  # our own error says it in one line
    try:
        yield Hub(request, huggingface_hub)
    finally:
        logger.setLevel(level)
        if quiet:
            enable_progress_bars()
