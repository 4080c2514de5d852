"""Folders uploaded to the hub, and the command from end to end, against a server on this machine."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from prefold.convert import HubError, upload
from tests.convert.conftest import Call, environment
from tests.hub_server import HubServer, read_folder

pytestmark = pytest.mark.usefixtures("forget_requests")


def test_upload_makes_a_private_repository_of_every_file(single: Path, server: HubServer, call: Call) -> None:
    address = call(upload, single, "me/private", private=True)
    repository = server.repositories["me/private"]
    commit = repository.branches["main"]
    assert repository.private
    assert address == f"{server.url}/me/private/commit/{commit}"
    assert repository.commits[commit] == read_folder(single) | {".gitattributes": b""}


def test_upload_again_is_one_commit_without_older_weights(
    single: Path, sharded: Path, server: HubServer, call: Call
) -> None:
    kept = {"notes.txt": b"mine", ".gitattributes": b""}
    server.add("me/again", read_folder(sharded) | kept)
    call(upload, single, "me/again", private=False)
    repository = server.repositories["me/again"]
    assert len(repository.commits) == 2
    assert repository.commits[repository.branches["main"]] == read_folder(single) | kept


@pytest.mark.parametrize(
    ("repo", "behaviour", "private", "reason"),
    [
        ("me/public", {}, True, "exists and is public"),
        ("me/locked", {"read_only": True}, False, "no write access"),
        ("forbidden/new", None, False, "don't have the rights"),
    ],
)
def test_a_refused_upload_loses_nothing(
    repo: str, behaviour: dict[str, Any] | None, private: bool, reason: str, single: Path, server: HubServer, call: Call
) -> None:
    before = read_folder(single)
    if behaviour is not None:
        server.add(repo, {"README.md": b""}, **behaviour)
    with pytest.raises(HubError, match=reason) as caught:
        call(upload, single, repo, private=private)
    assert len(str(caught.value).splitlines()) == 1
    assert read_folder(single) == before
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
