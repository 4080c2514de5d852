"""Folders uploaded to the hub, and the command from end to end, against a server on this machine."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prefold.convert import HubError, OutputExists, UsageError, convert_checkpoint, require_publishable, upload
from tests.convert.conftest import Call, environment
from tests.hub_server import HubServer, read_folder

pytestmark = pytest.mark.usefixtures("forget_requests")


@pytest.fixture
def folded(single: Path, tmp_path: Path) -> Path:
    return convert_checkpoint(str(single), tmp_path / "folded").out


def test_upload_makes_a_private_repository_of_every_file(folded: Path, server: HubServer, call: Call) -> None:
    address = call(upload, folded, "me/private", private=True)
    repository = server.repositories["me/private"]
    commit = repository.branches["main"]
    assert repository.private
    assert address == f"{server.url}/me/private/commit/{commit}"
    assert repository.commits[commit] == read_folder(folded) | {".gitattributes": b""}


def test_upload_again_is_one_commit_without_older_weights(
    folded: Path, sharded: Path, server: HubServer, call: Call, tmp_path: Path
) -> None:
    kept = {"notes.txt": b"mine", ".gitattributes": b""}
    older = convert_checkpoint(str(sharded), tmp_path / "older").out
    server.add("me/again", read_folder(older) | kept)
    call(upload, folded, "me/again", private=False)
    repository = server.repositories["me/again"]
    assert len(repository.commits) == 2
    assert repository.commits[repository.branches["main"]] == read_folder(folded) | kept


@pytest.mark.parametrize(
    ("repo", "behaviour", "private", "reason"),
    [
        ("me/public", {}, True, "exists and is public"),
        ("me/locked", {"read_only": True}, False, "no write access"),
        ("forbidden/new", None, False, "don't have the rights"),
    ],
)
def test_a_refused_upload_loses_nothing(
    repo: str, behaviour: dict[str, Any] | None, private: bool, reason: str, folded: Path, server: HubServer, call: Call
) -> None:
    before = read_folder(folded)
    if behaviour is not None:
        server.add(repo, {"README.md": b""}, **behaviour)
    with pytest.raises(HubError, match=reason) as caught:
        call(upload, folded, repo, private=private)
    assert len(str(caught.value).splitlines()) == 1
    assert read_folder(folded) == before
    assert repo not in server.repositories or len(server.repositories[repo].commits) == 1


def prefold(url: str, home: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "prefold.cli.main", *map(str, arguments)]
    return subprocess.run(command, env=environment(url, home), capture_output=True, text=True, timeout=300)


def test_the_command_converts_and_uploads_with_data_alone_on_stdout(
    single: Path, server: HubServer, tmp_path: Path
) -> None:
    commit = server.add("org/commanded", read_folder(single))
    out = tmp_path / "out"
    done = prefold(server.url, tmp_path / "home", "convert", "org/commanded", out, "--no-verify", "--json",
                   "--push-to-hub", "me/folded", "--private")  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["inspection"]["revision"] == commit
    repository = server.repositories["me/folded"]
    assert figures["uploaded"] == f"{server.url}/me/folded/commit/{repository.branches['main']}"
    assert repository.commits[repository.branches["main"]] == read_folder(out) | {".gitattributes": b""}
    assert "%|" not in done.stderr  # bars are for terminals


def test_the_command_says_that_the_hub_is_down(tmp_path: Path) -> None:
    with HubServer() as gone:
        url = gone.url
    done = prefold(url, tmp_path / "home", "inspect", "org/name")
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert url in done.stderr


def test_nothing_is_made_on_the_hub_before_the_source_has_been_looked_at(server: HubServer, tmp_path: Path) -> None:
    server.add("org/broken", {"config.json": b"{}", "model.safetensors": b""})
    done = prefold(server.url, tmp_path / "home", "convert", "org/broken", tmp_path / "out", "--push-to-hub", "me/none")
    assert done.returncode == 3, done.stderr
    assert "me/none" not in server.repositories


def test_a_source_is_not_uploaded_over(single: Path, server: HubServer, tmp_path: Path) -> None:
    server.add("org/over", read_folder(single))
    done = prefold(server.url, tmp_path / "home", "convert", "org/over", tmp_path / "out", "--no-verify", "--force",
                   "--push-to-hub", "Org/Over")  # fmt: skip
    assert done.returncode == 2
    assert "is the source itself" in done.stderr
    assert server.repositories["org/over"].commits[server.repositories["org/over"].branches["main"]] == read_folder(
        single
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "sub/other.safetensors", "pytorch_model.bin", "m.Q4.gguf"])
def test_a_repository_of_another_kind_keeps_its_weights(
    name: str, single: Path, folded: Path, server: HubServer, call: Call, tmp_path: Path
) -> None:
    repo = f"me/days-of-work-{name.replace('/', '-')}"
    server.add(repo, {name: b"days of work"})
    for work in (lambda: call(upload, folded, repo, private=False),
                 lambda: call(require_publishable, repo, str(single))):  # fmt: skip
        with pytest.raises(OutputExists, match="which is no fold's; --force replaces"):
            work()
    assert len(server.repositories[repo].commits) == 1
    call(upload, folded, repo, private=False, force=True)
    assert len(server.repositories[repo].commits) == 2


def test_a_folder_that_is_no_fold_is_not_uploaded(single: Path, call: Call) -> None:
    with pytest.raises(UsageError, match="not a folded checkpoint"):
        call(upload, single, "me/plain", private=False)


@pytest.mark.parametrize("repo", ["name", "a/b/c", ""])
def test_what_is_no_repository_is_a_usage_error(repo: str, call: Call) -> None:
    with pytest.raises(UsageError, match="not the id of a repository"):
        call(require_publishable, repo, "source")
