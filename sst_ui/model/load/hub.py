"""The Hugging Face Hub: what a repository holds, how to fetch it, and its errors in one line."""

from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from sst_ui.errors import UserError


def list_files(repo: str, revision: str | None) -> Path | tuple[dict[str, int], str | None]:
    """What a repository holds.

    Returns:
        (name -> bytes, commit), or the folder of an earlier download if the Hub cannot be reached.

    Raises:
        UserError: no such repository or revision, gated, no valid id, or not reachable at all.
    """
    try:
        info = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=15)
    except HfHubHTTPError as error:
        if getattr(getattr(error, "response", None), "status_code", 0) >= 500:
            return _cached(repo, revision)  # the Hub has a bad day
        raise _refused(repo, revision, error) from error
    except HFValidationError as error:
        raise _no_id(repo) from error
    except (OfflineModeIsEnabled, OSError):
        return _cached(repo, revision)
    except Exception as error:
        if not type(error).__module__.startswith("http"):
            raise
        return _cached(repo, revision)  # the transport's own errors: no network, no name, no answer
    files = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    return files, info.sha


def _cached(repo: str, revision: str | None) -> Path:
    """Without the network, an earlier download will do."""
    try:
        folder = Path(snapshot_download(repo, revision=revision, local_files_only=True))
    except HFValidationError as error:
        raise _no_id(repo) from error
    except (LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{repo} is not on this machine and the Hugging Face Hub cannot be reached; "
            "give a local folder, or 'demo'."
        ) from error
    return folder


def _no_id(repo: str) -> UserError:
    return UserError(
        f"{repo!r} is neither a folder on this machine nor a Hub id such as 'org/name'."
    )


def _refused(repo: str, revision: str | None, error: HfHubHTTPError) -> UserError:
    if isinstance(error, GatedRepoError):
        return UserError(
            f"{repo} is gated: accept its licence on its Hub page and log in with "
            "`hf auth login` (or set HF_TOKEN), or give a local folder."
        )
    if isinstance(error, RevisionNotFoundError):
        return UserError(f"{repo} has no revision {revision!r}; check model.revision.")
    if isinstance(error, RepositoryNotFoundError):
        return UserError(
            f"{repo} was not found on the Hub (or is private: log in); check the id, or give a "
            "local folder such as ./" + repo.rpartition("/")[2] + "."
        )
    return UserError(f"the Hub refused {repo}: {' '.join(str(error).split())[:200]}")


def fetch(repo: str, name: str, commit: str | None) -> str:
    """Fetch one file, or find it in the cache; returns its path.

    Raises:
        UserError: gated, or the download failed.
    """
    try:
        return hf_hub_download(repo, name, revision=commit)
    except GatedRepoError as error:
        raise _refused(repo, commit, error) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{name} of {repo} could not be downloaded: {' '.join(str(error).split())[:200]} "
            "Try again: what is there already is kept."
        ) from error
