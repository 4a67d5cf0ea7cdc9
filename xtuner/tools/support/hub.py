"""Exported folders to the Hugging Face Hub; what would refuse them is asked before an export, which takes minutes."""

from __future__ import annotations

from pathlib import Path

from xtuner.errors import XTunerError

_STALE = ("model*.safetensors", "model.safetensors.index.json")
"""Files of an earlier export of another size; the repository's history keeps them."""
_NAME_FORM = "expected NAME or OWNER/NAME of letters, digits, '-', '_' and '.', e.g. me/mg-llava-7b"


def prepare_repository(name: str, private: bool) -> str:
    """Makes sure that a folder can be pushed: form of the name, token, network, permission; creates the repository.

    Args:
        name: ``NAME``, of the token's own user, or ``OWNER/NAME``.
        private: a repository that is made here is private.

    Returns:
        ``OWNER/NAME``.

    Raises:
        XTunerError: one sentence of what is wrong and what to do.
    """
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.utils import validate_repo_id

    start = f"--push-to-hub {name}:"
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise XTunerError(f"{start} not a name of a repository; {_NAME_FORM}.") from error
    if constants.HF_HUB_OFFLINE:
        raise XTunerError(f"{start} HF_HUB_OFFLINE is set. Unset it, or leave --push-to-hub out and push later.")
    if get_token() is None:
        raise XTunerError(f"{start} there is no token. Run `hf auth login` with one that may write, or set HF_TOKEN.")
    api = HfApi()
    try:
        user = api.whoami()
        role = user.get("auth", {}).get("accessToken", {}).get("role")
        if role == "read":
            raise XTunerError(f"{start} the token of '{user['name']}' may only read. Give one that may write.")
        full = name if "/" in name else f"{user['name']}/{name}"
        owners = [user["name"], *(group["name"] for group in user.get("orgs", []))]
        if full.partition("/")[0] not in owners:
            raise XTunerError(f"{start} the token may not write there. Give a name of one of {', '.join(owners)}.")
        api.create_repo(full, private=private or None, exist_ok=True)
    except HfHubHTTPError as error:
        status = error.response.status_code
        reason = (error.server_message or _first_line(error)).strip().rstrip(".")
        raise XTunerError(
            f"{start} the Hub refuses with {status} ({reason}). Check the token's rights and the owner's name."
        ) from error
    except XTunerError:
        raise
    # no network, no such host, a proxy: the client's library for requests has had several names
    except Exception as error:
        raise XTunerError(
            f"{start} the Hub cannot be reached: {_first_line(error)}. Leave --push-to-hub out and push it later."
        ) from error
    return full


def push_folder(folder: Path, repository: str) -> str:
    """Uploads a folder as one commit; returns its address.

    Raises:
        XTunerError: the upload fails; the folder stays, and the message says how to push it.
    """
    from huggingface_hub import HfApi

    try:
        commit = HfApi().upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message="Export of xtuner convert pth_to_hf",
            delete_patterns=list(_STALE),
        )
    # the client raises errors of several libraries, and hours of work must not look lost
    except Exception as error:
        raise XTunerError(
            f"'{folder}' is complete, but could not be pushed to {repository}: {_first_line(error)}. Push it with "
            f"`hf upload {repository} {folder}`."
        ) from error
    return str(commit.commit_url)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
