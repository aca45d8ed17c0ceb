"""Pushes a folder to the Hugging Face Hub: private unless asked otherwise, resuming where it
stopped.

Large files are uploaded one by one, and one commit at the end makes them visible together: a push
that fails leaves no half model on the Hub, and the next one sends only what is missing.
"""

import os
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from sst_ui.errors import UserError
from sst_ui.progress import Progress

FAILURES = (OfflineModeIsEnabled, OSError, RuntimeError, ValueError)  # what huggingface_hub raises
MESSAGE = "Upload with SST Studio"


@dataclass(frozen=True)
class Pushed:
    """Where a folder went: `url` of the repository, `commit`, and bytes in all its files."""

    url: str
    commit: str
    private: bool
    files: int
    bytes: int


def push(
    folder: Path, repo: str, private: bool = True, token: str | None = None
) -> Generator[Progress, None, Pushed]:
    """Upload every file of a folder to a model repository, which is made if it is not there.

    Args:
        repo: `owner/name`, or `name` for the account of the token.
        private: of a new repository; one that is there keeps its visibility.
        token: with write access; None for the environment's (HF_TOKEN) or the one of `hf auth
            login`. On a Space, the OAuth token of the visitor.

    Yields:
        Progress of the stage `upload`, in bytes.

    Raises:
        UserError: no such folder, no token, a token that may not write, a name that is taken or no
            name, the Hub cannot be reached. Pushing again goes on where this one stopped.
    """
    folder = Path(folder).expanduser()
    paths = _files(folder)
    token = token or get_token()
    if not token:
        raise UserError(
            "no Hugging Face token: set HF_TOKEN to one with write access "
            "(huggingface.co/settings/tokens), or log in with `hf auth login`."
        )
    if constants.HF_HUB_OFFLINE:
        raise UserError("HF_HUB_OFFLINE is set; unset it to push to the Hub.")
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)
    total, done = sum(path.stat().st_size for path in paths.values()), 0
    yield Progress("upload", 0, total, repo)
    try:
        if "/" not in repo:
            repo = f"{api.whoami()['name']}/{repo}"
        validate_repo_id(repo)
        made = api.create_repo(repo, private=private, exist_ok=True)
        repo = made.repo_id
        additions = []
        for name, path in paths.items():
            yield Progress("upload", done, total, name)
            addition = CommitOperationAdd(path_in_repo=name, path_or_fileobj=path)
            # what the server has already is not sent again
            api.preupload_lfs_files(repo, [addition], free_memory=False)
            additions.append(addition)
            done += path.stat().st_size
        yield Progress("upload", done, total, "commit")
        commit = api.create_commit(repo, additions, commit_message=MESSAGE)
        info = api.model_info(repo)
    except Exception as error:
        known = isinstance(error, (*FAILURES, HfHubHTTPError, HFValidationError))
        if not known and not type(error).__module__.startswith(("http", "hf_xet")):
            raise
        raise _refused(repo, error) from error
    return Pushed(str(made), commit.oid, bool(info.private), len(paths), total)


def _files(folder: Path) -> dict[str, Path]:
    """Name in the repository -> file; small ones first, hidden ones not at all."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; export first, and give the folder it made.")
    found = {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    }
    if not found:
        raise UserError(f"{folder} holds no files; there is nothing to push.")
    return dict(sorted(found.items(), key=lambda item: (item[1].stat().st_size, item[0])))


def _refused(repo: str, error: Exception) -> UserError:
    if isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    status = getattr(getattr(error, "response", None), "status_code", 0)
    said = " ".join(str(error).split())[:200]
    if isinstance(error, HFValidationError):
        return UserError(f"{repo!r} is not a valid repository name: {said}")
    if status == 401:
        return UserError("the Hub does not accept the token; make a new one with write access.")
    if status == 403:
        return UserError(f"the token may not write to {repo}; use one with write access to it.")
    again = "Push again: files already uploaded are not sent twice."
    return UserError(f"pushing to {repo} failed: {said or type(error).__name__}. {again}")
