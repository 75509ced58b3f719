"""The screen reads products and not factors, and finds tokens that are planted in the weights."""

import time
from pathlib import Path

import pytest
import torch

from deltasae_ray.analyses.screen.figures import CANNOT_TELL, FIGURES, screened, standing
from deltasae_ray.analyses.screen.run import Ends, screen, screen_one
from deltasae_ray.errors import AdapterError, ConfigError
from deltasae_ray.metrics.geometry.weight_products import products
from deltasae_ray.models.adapter_files import CONFIG, WEIGHTS, read_tensors, weights_bytes
from tests.tiny import save_adapter, save_model

D, TOKENS, RANK = 48, 300, 4


def factors(seed: int = 0, *, read: torch.Tensor | None = None, write: torch.Tensor | None = None):
    g = torch.Generator().manual_seed(seed)
    found = {}
    for layer in range(4):
        for kind, (out, into) in {"q_proj": (D, D), "up_proj": (96, D), "down_proj": (D, 96)}.items():
            name = f"base_model.model.model.layers.{layer}.mlp.{kind}"
            a = torch.randn(RANK, into, generator=g)
            b = torch.randn(out, RANK, generator=g)
            if read is not None and into == D:
                a[0] = 30 * read
            if write is not None and out == D:
                b[:, 0] = 30 * write
            found |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
    return found


def turned(tensors: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """The same products from other factors: B·R and R⁻¹·A with a random R that is no rotation."""
    g = torch.Generator().manual_seed(seed)
    found = dict(tensors)
    for name in tensors:
        if ".lora_A." in name:
            r = torch.randn(RANK, RANK, generator=g).double()
            partner = name.replace("lora_A", "lora_B")
            found[partner] = tensors[partner].double() @ r
            found[name] = torch.linalg.solve(r, tensors[name].double())
    return found


@pytest.fixture(scope="module")
def rows() -> torch.Tensor:
    return torch.randn(TOKENS, D, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_other_factors_of_the_same_product_have_the_same_figures(seed: int, rows: torch.Tensor):
    one = screened(products(factors(), 2.0), rows, rows)
    other = screened(products(turned(factors(), seed), 2.0), rows, rows)
    assert other.figures == pytest.approx(one.figures, rel=1e-5)
    assert other.shares == pytest.approx(one.shares, rel=1e-6)
    assert (other.read, other.written) == (one.read, one.written)
    assert one.figures.keys() == FIGURES.keys()
    different = screened(products(factors(seed), 2.0), rows, rows)
    assert different.figures != pytest.approx(one.figures, rel=1e-3)


def test_a_token_that_the_weights_read_or_write_stands_out(rows: torch.Tensor):
    plain = screened(products(factors(), 1.0), rows, rows)
    reads = screened(products(factors(read=rows[17] / rows[17].norm()), 1.0), rows, rows)
    writes = screened(products(factors(write=rows[201] / rows[201].norm()), 1.0), rows, rows)
    assert reads.read[0] == 17 and 17 not in plain.read[:1]
    assert writes.written[0] == 201
    assert reads.figures["read_peak"] > 1.3 * plain.figures["read_peak"]
    assert writes.figures["write_peak"] > 1.3 * plain.figures["write_peak"]
    assert reads.figures["write_peak"] == pytest.approx(plain.figures["write_peak"], rel=0.3)


def test_norm_and_spectrum_are_those_of_the_whole_matrices(rows: torch.Tensor):
    tensors, scale = factors(), 0.5
    found = screened(products(tensors, scale), rows, rows)
    whole = [scale * tensors[n.replace("lora_A", "lora_B")] @ tensors[n] for n in tensors if ".lora_A." in n]
    assert found.figures["norm"] == pytest.approx(
        sum(float(w.square().sum()) for w in whole) ** 0.5, rel=1e-5
    )
    energy = [float(w.square().sum()) for w in whole]
    first = [float(torch.linalg.svdvals(w)[0] ** 2) for w in whole]
    assert found.figures["top_share"] == pytest.approx(sum(first) / sum(energy), rel=1e-5)
    assert sum(found.shares.values()) == pytest.approx(1)
    assert 0 < found.figures["late_share"] < 1


def test_an_adapter_that_changes_nothing_has_no_figures_and_no_tokens(rows: torch.Tensor):
    none = {name: torch.zeros_like(t) if "lora_B" in name else t for name, t in factors().items()}
    found = screened(products(none, 1.0), rows, rows)
    assert set(found.figures.values()) == {0.0} and found.read == found.written == ()
    with pytest.raises(AdapterError, match="nothing to screen"):
        screened(products({"base_model.model.lm_head.bias": torch.zeros(3)}, 1.0), rows, rows)


def test_a_standing_has_an_exact_interval_and_is_never_more_certain_than_its_reference():
    assert standing(3.0, []).p == 1.0
    alone = standing(9.0, [1.0, 2.0, 3.0])
    assert (alone.above, alone.of, alone.p) == (0, 3, 0.25)
    assert alone.low == 0.0 and alone.high == pytest.approx(1 - 0.025 ** (1 / 3))
    assert standing(2.0, [1.0, 2.0, 3.0]).above == 2


def test_folders_are_screened_against_a_reference_in_less_than_a_second_each(tmp_path: Path):
    base = save_model(tmp_path / "base")
    folders = [save_adapter(tmp_path / f"a{i}", base, seed=i, scale=0.05) for i in range(4)]
    loud = save_adapter(tmp_path / "loud", base, seed=9, scale=0.5)
    ends = Ends.of(base)
    began = time.process_time()
    found = screen([loud, folders[0]], folders, ends)
    assert time.process_time() - began < 6
    assert found[0].standings["norm"].above == 0 and found[0].standings["norm"].of == 4
    assert found[1].standings["norm"].of == 3, "an adapter is not held against itself"
    assert all(one.seconds < 1 for one in found)
    other = tmp_path / "turned"
    other.mkdir()
    (other / CONFIG).write_bytes((loud / CONFIG).read_bytes())
    (other / WEIGHTS).write_bytes(weights_bytes(turned(read_tensors(loud), 5)))
    assert screen_one(other, ends).figures == pytest.approx(found[0].screened.figures, rel=1e-4)
    with pytest.raises(ConfigError, match="adapters is empty"):
        screen([], folders, ends)
    assert "cannot say what a change does" in CANNOT_TELL


def test_adapters_that_the_weights_alone_do_not_describe_are_refused(tmp_path: Path):
    base = save_model(tmp_path / "base")
    dora = save_adapter(tmp_path / "dora", base, use_dora=True)
    with pytest.raises(AdapterError, match="DoRA"):
        screen_one(dora, Ends.of(base))
    narrow = Ends(torch.zeros(10, 7), torch.zeros(10, 7))
    with pytest.raises(AdapterError, match="made for another model"):
        screen_one(save_adapter(tmp_path / "plain", base), narrow)
