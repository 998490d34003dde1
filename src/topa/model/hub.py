"""Checkpoints on a model hub: fetched by name, uploaded with a card that says what they are."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # its HTTP client

from topa.errors import CheckpointError, ConfigError
from topa.model.card import write_card

if TYPE_CHECKING:
    from topa.model.pretrained import TopaPreTrainedModel

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "README.md"]
_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download")
# What Auto classes pass along, and what means nothing where all code comes from this package.
_PASSED_ALONG = ("_from_auto", "trust_remote_code", "adapter_kwargs", "code_revision", "subfolder")


def is_hub_id(name: str) -> bool:
    """Whether a name has the form OWNER/NAME of a model hub."""
    return _HUB_ID.fullmatch(name) is not None


def take_hub_options(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the hub's options among the arguments of `from_pretrained`.

    Raises:
        ConfigError: There are arguments that nobody knows.
    """
    unknown = set(arguments) - {*_OPTIONS, *_PASSED_ALONG}
    if unknown:
        raise ConfigError(
            f"unknown arguments: {', '.join(sorted(unknown))}",
            where="from_pretrained",
            mend="See help(TopaForConditionalGeneration.from_pretrained).",
        )
    return {key: arguments[key] for key in _OPTIONS if arguments.get(key) is not None}


def fetch_checkpoint(name: str, **options: Any) -> Path:
    """Return the folder of a checkpoint on the hub, downloaded if it is not there yet.

    Args:
        name: OWNER/NAME.
        **options: As `huggingface_hub.snapshot_download` takes them.

    Raises:
        CheckpointError: There is none, or the hub cannot be reached.
    """
    try:
        return Path(snapshot_download(name, allow_patterns=_FILES, **options))
    except (OSError, ValueError, httpx.HTTPError) as error:
        raise CheckpointError(
            "neither a folder here nor a checkpoint on the hub that can be reached "
            f"({str(error).splitlines()[0]})",
            where=name,
            mend="Check the name, the network and HF_TOKEN, or give a folder.",
        ) from error


def push_checkpoint(
    model: TopaPreTrainedModel,
    repo_id: str,
    *,
    run: str | Path | None = None,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str = "Upload a checkpoint of topa",
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """Upload a checkpoint and a model card written from the run.

    Args:
        model: The model.
        repo_id: OWNER/NAME, made if it is not there.
        run: Run directory of its training; by default the one it was loaded out of.
        private: Whether a new repository is private.
        token: By default the one that `hf auth login` or HF_TOKEN gives.
        commit_message: Of the upload.
        revision: Branch.
        create_pr: Upload as a pull request.

    Returns:
        The address of the commit.

    Raises:
        ConfigError: Not a name of the hub, or the upload was refused.
    """
    if not is_hub_id(repo_id):
        raise ConfigError("not of the form OWNER/NAME", where=repo_id)
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory(prefix="topa-") as folder:
        model.save_pretrained(folder)
        write_card(model, folder, run, repo_id=repo_id)
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message,
                revision=revision,
                create_pr=create_pr,
            )
        except (OSError, ValueError, httpx.HTTPError) as error:
            raise ConfigError(
                f"the upload failed ({str(error).splitlines()[0]})",
                where=repo_id,
                mend="Check the network, and that HF_TOKEN may write there.",
            ) from error
    return commit.commit_url
