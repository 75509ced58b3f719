"""Vectors on disk: format, records, manifest, writer, reader."""

from deltasae_ray.shards.opening import open_shards as open_shards
from deltasae_ray.shards.reader import ShardSet as ShardSet
