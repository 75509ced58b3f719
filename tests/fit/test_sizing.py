"""What `fit.d_sae=auto` stands for, once the deltas are there."""

from pathlib import Path

import pytest
import torch

from deltasae_ray.errors import ShardError
from deltasae_ray.fit.sizing import auto_d_sae, delta_rank
from deltasae_ray.sae import fitting
from deltasae_ray.sae.fitting import effective_rank
from deltasae_ray.shards.opening import open_harvest
from deltasae_ray.storage import Storage
from tests.fit.made import KEY, make_harvest


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    made = Storage(str(tmp_path / "root"))
    make_harvest(made)
    return made


def test_the_rank_of_deltas_leaves_position_0_out_and_is_0_where_nothing_changes(storage: Storage) -> None:
    shards = open_harvest(storage, KEY)
    rows = torch.from_numpy(shards.read(1, "r4", split="fit"))
    kept = rows[shards.tokens("fit").position > 0]
    assert (
        delta_rank(storage, KEY, "r4", 1)
        == effective_rank(kept)
        != pytest.approx(effective_rank(rows), rel=0.05)
    )
    assert delta_rank(storage, KEY, "late", 1) == 0


def test_the_effective_rank_does_not_depend_on_the_chunks() -> None:
    x = torch.randn(500, 12, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 13)
    spectrum = torch.linalg.eigvalsh(torch.cov(x.double().T))
    p = spectrum / spectrum.sum()
    expected = float(torch.exp(-(p * p.log()).sum()))
    assert effective_rank(x) == pytest.approx(expected, rel=1e-9)
    assert effective_rank(x, chunk=7) == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow
def test_one_size_for_all_follows_the_largest_rank(
    ray_cluster: None, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert auto_d_sae(storage, KEY, ["r4", "late"], [1, 3]) == 256
    monkeypatch.setattr(fitting, "AUTO_FLOOR", 2)
    ranks = {
        (name, layer): delta_rank(storage, KEY, name, layer) for name in ("r4", "late") for layer in (1, 3)
    }
    assert 64 < 8 * max(ranks.values()) < 128 == auto_d_sae(storage, KEY, ["r4", "late"], [1, 3])
    with pytest.raises(ShardError, match="nobody"):
        auto_d_sae(storage, KEY, ["nobody"], [1])
