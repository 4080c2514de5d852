"""Repositories on the hub: resolve a revision once, fetch only what is needed, upload a result."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

from prefold.convert.errors import HubError, UsageError
from prefold.convert.files import INDEX, SINGLE, is_weights


@contextmanager
def _translated(repo: str) -> Iterator[None]:
    try:
        yield
    except HFValidationError as error:
        raise UsageError(f"{repo}: no such folder, and not the id of a repository on the hub (org/name)") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise HubError(f"{repo}: {str(error).strip().splitlines()[0]}") from error


def resolve(repo: str, revision: str | None) -> tuple[str, list[str]]:
    """Return the commit that a revision means now, and the names of its files.

    Raises:
        HubError: no such repository or revision, or no connection.
        UsageError: not a repository id.
    """
    with _translated(repo):
        info = HfApi().model_info(repo, revision=revision)
    if info.sha is None or info.siblings is None:
        raise HubError(f"{repo}: the hub names neither a commit nor files")
    return info.sha, [sibling.rfilename for sibling in info.siblings]


def fetch_file(repo: str, commit: str, name: str) -> Path:
    """Download one file of a commit; returns where it lies."""
    with _translated(repo):
        return Path(hf_hub_download(repo, name, revision=commit))


def fetch_checkpoint(repo: str, commit: str, names: list[str]) -> Path:
    """Download what a conversion reads of a commit: one set of safetensors weights and all side files."""
    weights = [SINGLE] if SINGLE in names else []
    if not weights and INDEX in names:
        index = json.loads(fetch_file(repo, commit, INDEX).read_text())
        weights = sorted(set(index["weight_map"].values()))
    wanted = weights + [name for name in names if not is_weights(name)]
    with _translated(repo):
        return Path(snapshot_download(repo, revision=commit, allow_patterns=wanted))


def upload(folder: Path, repo: str, *, private: bool) -> str:
    """Upload a folder as a repository of its own; returns the address of the commit."""
    with _translated(repo):
        api = HfApi()
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Add a folded checkpoint")
    return str(commit)
