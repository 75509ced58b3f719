"""The latents that were judged, one row each, in latents.parquet."""

from collections.abc import Mapping
from io import BytesIO

import pyarrow as pa
import pyarrow.parquet as pq

from deltasae_ray.analyses.leaf_spec import LeafSpec
from deltasae_ray.analyses.visibility.layer_figures import Sight
from deltasae_ray.storage import Storage

PARQUET = "latents.parquet"
SCHEMA = pa.schema(
    [
        ("adapter", pa.string()),
        *((name, pa.int64()) for name in ("layer", "d_sae", "k")),
        ("architecture", pa.string()),
        ("seed", pa.int64()),
        ("reference", pa.string()),
        ("latent", pa.int64()),
        ("label", pa.string()),
        *((name, pa.float64()) for name in ("p", "q")),
        ("scaling", pa.string()),
        ("firings", pa.int64()),
        ("effect", pa.float64()),
    ]
)
"""Columns of latents.parquet; what is not known is null. `effect`: nats per token by which the adapted model
comes nearer to the base without the latent (diverge.controls=causal)."""


def write_latents(storage: Storage, sights: Mapping[LeafSpec, Sight]) -> None:
    """Writes every repeating latent of every dictionary that was judged, with its label."""
    records = [
        {
            **vars(leaf.identity),
            "reference": leaf.reference_name,
            "latent": x.index,
            **{name: getattr(x, name) for name in ("label", "p", "q", "scaling", "firings")},
            "effect": sight.effects[x.index].value if x.index in sight.effects else None,
        }
        for leaf, sight in sights.items()
        for x in sight.own.answer.latents
    ]
    sink = BytesIO()
    pq.write_table(pa.Table.from_pylist(records, schema=SCHEMA), sink)
    storage.write_bytes(PARQUET, sink.getvalue())
