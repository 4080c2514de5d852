"""Repositories on the hub: resolve a revision once, fetch only what is needed, upload a result.

Whole files that a download has fetched stay in the client's cache: after an interruption the next call fetches the
others only.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from glob import escape
from pathlib import Path

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    hf_hub_download,
    is_offline_mode,
    snapshot_download,
)
from huggingface_hub.constants import ENDPOINT, HF_HUB_DISABLE_PROGRESS_BARS
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from prefold.common.errors import UsageError
from prefold.convert.checkpoint.files import CONFIG, TABLE, all_files, is_weights
from prefold.convert.errors import HubError, OutputExists, is_own

_LOG_IN = "log in with `hf auth login`"
# Weights that a program would take for those of the uploaded checkpoint, if an older upload had left them there.
_STALE = ("*.safetensors", "*.safetensors.index.json")


@contextmanager
def _translated(repo: str) -> Iterator[None]:
    try:
        with _bars_on_terminals_only():
            yield
    except HubError:
        raise
    except HFValidationError as error:
        raise UsageError(f"{repo}: no such folder, and not the id of a repository on the hub (org/name)") from error
    # The client lets its HTTP and storage libraries' errors through, whose classes change from version to version.
    except Exception as error:
        if is_own(error):
            raise
        raise HubError(f"{repo}: {_reason(error)}") from error


@contextmanager
def _bars_on_terminals_only() -> Iterator[None]:
    quiet = not sys.stderr.isatty() and HF_HUB_DISABLE_PROGRESS_BARS is None and not are_progress_bars_disabled()
    if quiet:
        disable_progress_bars()
    try:
        yield
    finally:
        if quiet:
            enable_progress_bars()


def _reason(error: Exception) -> str:
    match error:
        case GatedRepoError():
            return f"gated: ask for access on its page, then {_LOG_IN}"
        case RepositoryNotFoundError():
            return f"no such folder, and no such repository on the hub; if it is private or gated, {_LOG_IN}"
        case RevisionNotFoundError():
            return "the repository has no such revision"
    return f"{ENDPOINT}: {' '.join(str(error).split()) or type(error).__name__}"


def resolve(repo: str, revision: str | None) -> tuple[str, list[str]]:
    """Return the commit that a revision means now, and the names of its files; offline, those in the client's cache.

    Raises:
        HubError: no such repository or revision, no connection, or nothing in the cache.
        UsageError: not a repository id.
    """
    if is_offline_mode():
        with _translated(repo):
            folder = Path(snapshot_download(repo, revision=revision, local_files_only=True))
        return folder.name, list(all_files(folder))
    with _translated(repo):
        info = HfApi().model_info(repo, revision=revision)
    if info.sha is None or info.siblings is None:
        raise HubError(f"{repo}: the hub names neither a commit nor files")
    return info.sha, [sibling.rfilename for sibling in info.siblings]


def fetch_file(repo: str, commit: str, name: str) -> Path:
    """Download one file of a commit; returns where it lies."""
    with _translated(repo):
        return Path(hf_hub_download(repo, name, revision=commit))


def fetch_files(repo: str, commit: str, names: list[str]) -> Path:
    """Download files of a commit, several at once; returns their folder.

    Raises:
        HubError: the hub did not give all of them.
    """
    with _translated(repo):
        folder = Path(snapshot_download(repo, revision=commit, allow_patterns=[escape(name) for name in names]))
    # Where the hub lists no files, the client may hand out what an earlier download left, which can be less.
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise HubError(f"{repo}: the hub did not give {', '.join(missing[:3])}")
    return folder


def require_publishable(repo: str, model: str, *, private: bool = False, force: bool = False) -> None:
    """Refuse a repository that a fold of ``model`` must not be uploaded to; nothing is created or changed.

    Raises:
        UsageError: not the id of a repository, or the source's own.
        OutputExists: it holds weights that are no fold, and ``force`` is not set.
        HubError: the hub did not answer, or ``private`` is asked for and the repository is public already.
    """
    if repo.count("/") != 1:
        raise UsageError(f"{repo}: not the id of a repository on the hub (org/name)")
    if repo.casefold() == model.casefold():
        raise UsageError(f"{repo}: is the source itself: nothing is uploaded over it")
    with _translated(repo):
        try:
            info = HfApi().model_info(repo)
        except RepositoryNotFoundError:
            return
    if info.id.casefold() == model.casefold():  # by an older name
        raise UsageError(f"{repo}: is the source itself: nothing is uploaded over it")
    if private and not info.private:
        raise HubError(f"{repo}: exists and is public: nothing was uploaded")
    weights = None if force else _foreign_weights([sibling.rfilename for sibling in info.siblings or []])
    if weights:
        raise OutputExists(f"{repo}: holds {weights}, which is no fold's; --force replaces the weights there")


def _foreign_weights(names: list[str]) -> str | None:
    """Return the first file of weights; None where the files are a fold's."""
    return None if TABLE in names else next((name for name in names if is_weights(name)), None)


def open_repository(repo: str, *, private: bool) -> None:
    """Create a repository unless it is there, so that a refusal comes before hours of work."""
    with _translated(repo):
        HfApi().create_repo(repo, private=private, exist_ok=True)


def upload(folder: Path, repo: str, *, private: bool, force: bool = False) -> str:
    """Upload a fold in one commit, and remove older weights beside it; returns the address of the commit.

    Errors are those of ``require_publishable``, for the source that the fold names.
    """
    section = json.loads((folder / CONFIG).read_text()).get("prefold")
    if section is None:
        raise UsageError(f"{folder}: not a folded checkpoint")
    require_publishable(repo, section["source"], private=private, force=force)
    open_repository(repo, private=private)
    with _translated(repo):
        api = HfApi()
        info = api.model_info(repo)
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    there = [sibling.rfilename for sibling in info.siblings or []]
    stale = [name for name in there if name not in files and any(fnmatch(name, pattern) for pattern in _STALE)]
    added = [CommitOperationAdd(name, path) for name, path in files.items()]
    removed = [CommitOperationDelete(name) for name in stale]
    message = "Add a folded checkpoint"
    with _translated(repo):
        return api.create_commit(
            repo, [*added, *removed], commit_message=message, parent_commit=info.sha
        ).commit_url  # the commit that was looked at
