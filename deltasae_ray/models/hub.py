"""Names on the Hugging Face hub, `owner/name` or `owner/name@revision`, and their files as a local folder."""

import re
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class HubName:
    """A repository, at a branch, tag or commit where one is named.

    A revision enters no key by its name: keys are of the files' content, so that a branch that moves is
    another model or adapter.
    """

    repo: str
    revision: str | None = None

    @classmethod
    def of(cls, text: str) -> "HubName":
        """Parses `owner/name[@revision]`.

        Raises:
            ValueError: an address, an @ with nothing before or after it, or a revision that is a path out of
                the hub's cache.
        """
        if ":" in text.partition("@")[0]:
            raise ValueError(
                f"{text!r} is an address: a folder, or owner/name[@revision] of the Hugging Face hub, is read"
            )
        repo, at, revision = text.partition("@")
        if at and not (repo and revision):
            raise ValueError(
                f"{text!r} is not owner/name@revision: name a branch, tag or commit after the @, or leave the"
                " @ out"
            )
        if ".." in revision.split("/") or revision.startswith(
            "/"
        ):  # the hub's cache looks for a file of that name
            raise ValueError(
                f"{text!r}: a revision is a branch, tag or commit, and {revision!r} is a path that leads"
                " elsewhere"
            )
        return cls(repo, revision or None)

    @property
    def name(self) -> str:
        """What stands after the owner."""
        return self.repo.rsplit("/", 1)[-1]

    def fetch(self, patterns: list[str]) -> Path:
        """The files that match, from the hub or its cache. Raises what the hub client does: dozens of
        types."""
        from huggingface_hub import snapshot_download

        if self.revision is None:
            return Path(snapshot_download(self.repo, allow_patterns=patterns))
        return Path(snapshot_download(self.repo, revision=self.revision, allow_patterns=patterns))


def why_not_had(place: str, error: Exception) -> str:
    """What a place that is neither a folder here nor on the hub most likely is, and what to give instead."""
    if place.startswith("file://"):
        return (
            "is an address, and folders of this machine are given as paths: give"
            f" {place.removeprefix('file://')}"
        )
    if "://" in place:
        page = re.fullmatch(r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([^/?#]+/[^/?#]+).*", place)
        give = f"give {page[1]}" if page else "download it, and give the folder"
        return (
            "is an address, and only folders of this machine and names on the hub (owner/name) are read:"
            f" {give}"
        )
    if Path(place).is_file():
        return f"is a file: give the folder that holds it, {Path(place).parent}"
    if place.startswith(("/", ".", "~")) or place.partition("@")[0].count("/") > 1:
        return "is no folder of this machine: is the path spelt right, and was it copied here?"
    text = " ".join(str(error).split())[:300].rstrip(".")
    misspelt = isinstance(error, ValueError) and "owner/name@" in text
    asks = (
        ". Is the name right (owner/name)? A gated or private one needs HF_TOKEN, and HF_HUB_OFFLINE=1 reads"
        " the hub's cache only"
    )
    remedy = "" if misspelt else asks
    return f"is no folder here and cannot be downloaded: {type(error).__name__}: {text}{remedy}"
