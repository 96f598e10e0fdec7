"""Files on the Hugging Face hub, named where a path may stand: ``hf://USER/REPO/FILE``.

``hf://USER/REPO@REVISION/FILE`` fixes a branch, tag or commit (a ``/`` in it as ``%2F``), and
``hf://datasets/USER/REPO/FILE`` is a file of a dataset. huggingface_hub fetches them into its own cache, and its
variables hold: ``HF_HOME``, ``HF_ENDPOINT``, ``HF_HUB_OFFLINE``, ``HF_TOKEN``.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import attrs

from rearkit.errors import RearkitError, first_line
from rearkit.system.files import sha256

# One slash will do: a name that was a `Path` for a while has lost the other.
SCHEME = re.compile(r"hf:/{1,2}(?!/)")
NAME = re.compile(r"(?:(datasets|models)/)?(?!(?:datasets|models|spaces)/)([^/@]+/[^/@]+)(?:@([^/]+))?/(.+)")
FORM = "hf://USER/REPO/FILE, hf://USER/REPO@REVISION/FILE or hf://datasets/USER/REPO/FILE"


@attrs.frozen
class HubFile:
    """A file on the hub.

    Attributes:
        repo: ``USER/REPO``.
        kind: ``model`` or ``dataset``.
        revision: branch, tag or commit; None for the main branch.
        file: path in the repository.
    """

    repo: str
    kind: str
    revision: str | None
    file: str

    @classmethod
    def parse(cls, name: str) -> HubFile:
        """Read a name.

        Raises:
            RearkitError: it has not the form of one.
        """
        found = NAME.fullmatch(SCHEME.sub("", name, count=1))
        if found is None:
            raise RearkitError(f"{name}: not a file on the hub; expected {FORM}")
        kind, repo, revision, file = found.groups()
        return cls(repo, "dataset" if kind == "datasets" else "model", revision and unquote(revision), file)

    def __str__(self) -> str:
        where = self.repo if self.kind == "model" else f"datasets/{self.repo}"
        revision = "" if self.revision is None else f"@{quote(self.revision, safe='')}"
        return f"hf://{where}{revision}/{self.file}"


def is_hub(path: str | Path) -> bool:
    """Return whether a name is that of a file on the hub."""
    return SCHEME.match(str(path)) is not None


def local_file(path: str | Path) -> Path:
    """Return a path as it is, or that of the local copy of a file on the hub, which is fetched if need be.

    Raises:
        RearkitError: it cannot be had; the message says what to do.
    """
    return _fetched(str(path)) if is_hub(path) else Path(path)


def hub_records(*paths: str | None) -> dict[str, Any]:
    """Return, for stage records and manifests, which revision and content the files on the hub had.

    Args:
        paths: names of files; those that are not on the hub are passed over.

    Returns:
        ``{"hub": {name: {"revision": …, "etag": …, "sha256": …}}}``; empty if none of them is on the hub.
    """
    files = [HubFile.parse(path) for path in paths if path is not None and is_hub(path)]
    return {"hub": {str(file): _record(file, local_file(str(file))) for file in files}} if files else {}


def _record(file: HubFile, local: Path) -> dict[str, str]:
    # The cache's layout: snapshots/COMMIT/FILE is a link to blobs/ETAG; without links, there is no etag to be had.
    record = {"revision": local.parts[-1 - len(Path(file.file).parts)], "sha256": sha256(local)}
    return record | ({"etag": local.resolve().name} if local.is_symlink() else {})


# Once in a process: stages ask for their files several times, and all of them should see the same revision.
@cache
def _fetched(name: str) -> Path:
    wanted = HubFile.parse(name)
    try:
        import huggingface_hub
    except ImportError:
        raise RearkitError(
            f"{wanted}: the hub needs the package huggingface_hub; run: pip install 'rearkit[hub]'"
        ) from None
    try:
        return Path(
            huggingface_hub.hf_hub_download(
                wanted.repo, wanted.file, repo_type=wanted.kind, revision=wanted.revision, library_name="rearkit"
            )
        )
    # Whatever the package raises: its errors come from HTTP libraries, the file system and itself.
    except Exception as error:
        raise RearkitError(f"{wanted}: {_reason(error, wanted)}") from None


def _reason(error: Exception, wanted: HubFile) -> str:
    """Say why a file cannot be had, and what to do."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{'datasets/' if wanted.kind == 'dataset' else ''}{wanted.repo}"
    # From the special to the general, since these are subclasses of one another.
    if isinstance(error, errors.GatedRepoError):
        return f"access is gated; ask for it at {page}, then set HF_TOKEN or run: hf auth login"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "no such repository, or a private one; correct the name, or set HF_TOKEN or run: hf auth login"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"no such revision {wanted.revision}; see {page}"
    if isinstance(error, errors.LocalEntryNotFoundError):
        if constants.HF_HUB_OFFLINE:
            return (
                "not in the cache, and HF_HUB_OFFLINE is set; unset it, or fetch the file beforehand: hf download "
                f"{'--repo-type dataset ' if wanted.kind == 'dataset' else ''}{wanted.repo} {wanted.file}"
            )
        return (
            f"{constants.ENDPOINT} cannot be reached, and the file is not in the cache; try again, or see HF_ENDPOINT"
        )
    if isinstance(error, errors.EntryNotFoundError):
        return f"no such file in the repository; see {page}"
    return f"cannot be fetched ({first_line(error)}); see {page}"
