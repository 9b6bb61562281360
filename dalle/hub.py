"""Models on the Hugging Face Hub: downloaded by name, and uploaded. Needs huggingface_hub (extra `hub`).

Only data files are downloaded: weights in safetensors, settings, tokenizers and texts. Nothing in them is executed.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dalle.bundled import bundled_names, checkpoint_folder
from dalle.checkpoint import CONFIG, CheckpointError
from dalle.optional_dependencies import check_installed

FILES = ["*.safetensors", "*.json", "*.md", "*LICENSE", "*NOTICE"]
# files of an export; an upload deletes those that it lacks: an earlier single weights file would be read first
REPLACED = [
    folder + name
    for folder in ("", "dvae/", "transformer/", "clip/")
    for name in (
        "model*.safetensors",
        "model.safetensors.index.json",
        "config.json",
        "tokenizer.json",
        "LICENSE",
        "NOTICE",
    )
]
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def local_folder(name: str | Path, revision: str | None = None) -> Path:
    """Return the local folder of a model, which is downloaded if `name` is user/name on the hub.

    name: a folder, the name of a checkpoint that comes with the package, or user/name.
    revision: branch, tag or commit on the hub; None: its main branch.

    Raises:
        CheckpointError: there is no such model or revision, or the hub cannot be reached.
    """
    if not str(name).strip():
        raise CheckpointError("the name of the model is empty: give a folder, or user/name")
    folder = checkpoint_folder(name)
    if folder.is_dir():
        if revision is not None:
            raise CheckpointError(f"{name} is a folder, which has no revision {revision}: leave revision out")
        return folder
    if not REPOSITORY.fullmatch(str(name)):
        known = " or ".join(bundled_names())
        choices = f"a folder, {known}, or user/name" if known else "a folder, or user/name"
        raise CheckpointError(f"there is no model {name}: give {choices} of a model on the Hugging Face Hub")
    first = str(name).split("/")[0]
    if first in bundled_names() or Path(first).is_dir():  # a local path with a typo must not be asked for on the hub
        raise CheckpointError(
            f"there is no folder {name}; it is not searched on the hub, since {first} is a local name"
        )
    check_installed("hub", f"there is no folder {name}, and downloading it", "huggingface_hub")
    from huggingface_hub import snapshot_download

    with _explained(str(name), revision, missing=", which is not a folder and was not downloaded before"):
        return Path(snapshot_download(str(name), revision=revision, allow_patterns=FILES))


def model_folder(name: str | Path, kind: str, revision: str | None = None) -> Path:
    """Return the local folder of a model of `kind` (dvae, clip): that of `name`, or its sub-folder of that name."""
    folder = local_folder(name, revision)
    return folder / kind if not (folder / CONFIG).exists() and (folder / kind).is_dir() else folder


def upload(folder: Path, repository: str, private: bool = False, revision: str | None = None) -> str:
    """Upload a folder to a repository on the hub, which is created if there is none. Returns the commit's address.

    The models of an earlier upload are replaced, also where they had other files. Other files of the repository stay.

    repository: user/name.
    private: of a new repository.
    revision: branch to write to; None: the main branch.

    Raises:
        CheckpointError: not logged in, no permission, or the hub cannot be reached.
    """
    if not REPOSITORY.fullmatch(repository):
        raise CheckpointError(f"{repository} is not the name of a repository on the hub: write user/name")
    check_installed("hub", f"uploading {repository}", "huggingface_hub")
    from huggingface_hub import HfApi

    with _explained(repository, revision):
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            revision=revision,
            delete_patterns=REPLACED,
            commit_message="Upload a model with its card",
        )
    return str(commit.commit_url)


@contextmanager
def _explained(repository: str, revision: str | None, missing: str = "") -> Iterator[None]:
    """Context that turns errors of huggingface_hub into one sentence.

    missing: what else an unreachable hub means, for a download; "" for an upload.
    """
    from huggingface_hub import constants, errors

    try:
        yield
    except errors.HFValidationError as error:
        raise CheckpointError(f"{repository} is not the name of a repository on the hub: {error}") from error
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{repository} is gated: accept its terms on {constants.ENDPOINT}/{repository}, then run hf auth login"
        ) from error
    except errors.RepositoryNotFoundError as error:
        folder = " and no such folder" if missing else ""
        raise CheckpointError(
            f"there is no model {repository} on {constants.ENDPOINT}{folder}, or it is private: check the spelling, or "
            "run hf auth login"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{repository} has no revision {revision}: give a branch, a tag or a commit") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            access = "read" if missing else "write to"
            raise CheckpointError(
                f"{constants.ENDPOINT} does not let you {access} {repository}: run hf auth login with a token that may"
            ) from error
        raise CheckpointError(f"{constants.ENDPOINT} answered about {repository}: {error}") from error
    except Exception as error:
        if not isinstance(error, OSError) and not type(error).__module__.startswith("httpx"):
            raise
        raise CheckpointError(
            f"{constants.ENDPOINT} cannot be reached for {repository}{missing}: check the network ({error})"
        ) from error
