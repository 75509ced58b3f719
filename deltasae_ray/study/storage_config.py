"""Where a study is written, and whether its deltas stay."""

from dataclasses import dataclass
from typing import Literal

from deltasae_ray.errors import ConfigError
from deltasae_ray.fingerprints import file_sha256 as file_sha256
from deltasae_ray.paths import expanded


@dataclass(frozen=True)
class StorageConfig:
    """Where everything is written. What a complete manifest lists there is not made again."""

    root: str = "runs/demo"
    """Folder, s3://bucket/prefix or gs://bucket/prefix; a relative one lies below $DELTASAE_STORAGE_ROOT
    where that is set. On more than one node all must see it: a folder must then be one of a network file
    system (NFS, Lustre) under the same path everywhere; the nodes are asked."""
    deltas: Literal["stored", "stream"] = "stored"
    """stored: the deltas of the whole corpus stay on disk, and any dictionary can be fitted later. stream:
    dictionaries are fitted to one window of the training text after the other, and a window's shards are
    deleted once every dictionary is past it; the evaluation split and the first window stay. A dictionary
    that is asked for later is then harvested for again."""
    window_tokens: int = 65_536
    """stream only: tokens per window, about; at most two windows are on disk beside what stays. One of a 9B
    model with four adapters at six layers takes 17 GB."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", expanded(self.root, "storage.root"))
        if self.window_tokens < 1:
            raise ConfigError(f"storage.window_tokens={self.window_tokens} must be at least 1")
