"""Loss recovered: what is patched, and the figures made of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deltasae_ray.analyses.loss_recovered.figures import nulls_of, recovered
from deltasae_ray.analyses.loss_recovered.model import Patched, document_recovery
from deltasae_ray.analyses.loss_recovered.stand_ins import StandIn
from deltasae_ray.batches import TokenBatch
from deltasae_ray.errors import ModelError
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.metrics.catalogue import METRICS, PATCHED
from deltasae_ray.models.adapters import attach
from deltasae_ray.models.capture import unit_ids
from deltasae_ray.models.load import blocks, load_model
from deltasae_ray.models.patching import whole_pass

DOCUMENTS, AT = 40, Hookpoint(1)


def unit(contexts: int = DOCUMENTS) -> TokenBatch:
    ids = np.random.default_rng(0).integers(3, 250, (contexts, 16)).astype(np.int32)
    ids[:, 0] = 1
    return TokenBatch(
        "eval",
        "domain",
        ids,
        np.ones_like(ids, bool),
        np.zeros_like(ids, bool),
        tuple(f"d{i}" for i in range(contexts)),
        (0,) * contexts,
    )


@pytest.fixture(scope="module")
def model(tiny_model: Path, tiny_adapters: tuple[Path, Path]) -> Any:
    return attach(load_model(tiny_model), {"r2": tiny_adapters[0], "r4": tiny_adapters[1]})


@pytest.fixture(scope="module")
def rows(model: Any) -> list[dict]:
    """Two stand-ins whose figures are known: the delta itself, and nothing."""
    known = {"encoder": lambda _, d: d, "monitor": lambda b, _: 0 * b}
    known |= {n: lambda _, d: 0 * d for n in nulls_of("encoder")} | {
        n: lambda _, d: d / 2 for n in nulls_of("monitor")
    }
    made = {name: StandIn(estimate, 48, 3) for name, estimate in known.items()}
    patches = [Patched(adapter, adapter, AT, made) for adapter in ("r2", "r4")]
    return document_recovery(model, unit(), patches, positions=8)


def test_every_document_has_a_row_for_every_patch(rows: list[dict]) -> None:
    assert len(rows) == 2 * DOCUMENTS and {r["positions"] for r in rows} == {8}
    for r in rows:
        assert r["budgets"]["encoder"] == (48, 3)
        assert r["ce"]["encoder"] == r["ce"]["exact"]
        assert r["ce"]["monitor"] == pytest.approx(r["ce"]["zero"], abs=1e-4)
        assert r["adapted"]["adapter"] != r["adapted"]["zero"]


def test_exact_deltas_recover_everything_and_none_recover_nothing(rows: list[dict]) -> None:
    found = recovered([r for r in rows if r["patch"] == "r4"], bootstrap=200, seed=0)
    assert set(found) == {name for name in METRICS if name.startswith(PATCHED)}
    for name, m in found.items():
        assert m.value is not None or "standard errors" in m.reason, name
    share, of_monitor = ([r["ce"][v] - r["ce"]["zero"] for r in rows] for v in ("encoder", "monitor"))
    assert np.abs(share).max() > 100 * np.abs(of_monitor).max(), "nothing patched in changes nothing"


def test_position_0_is_left_as_it_is(model: Any) -> None:
    given: list[torch.Tensor] = []

    def watch(base: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
        given.extend([base, delta])
        return delta

    found = document_recovery(
        model, unit(4), [Patched("r4", "r4", AT, {"encoder": StandIn(watch)})], positions=8
    )
    base = whole_pass(model, unit_ids(unit(4)), [AT])[0][AT]
    torch.testing.assert_close(given[0], base[:, 1:].reshape(-1, 32))
    assert len(found) == 4 and found[0]["ce"]["encoder"] == found[0]["ce"]["exact"]


SHARES = {"encoder": 0.8, "monitor": 0.1}
NULLS = {"encoder": 0.3, "monitor": 0.1}
SHARES |= {name: share for variant, share in NULLS.items() for name in nulls_of(variant)}
BUDGETS = {name: (64, 4) for name in SHARES}


def planted(effect: float, documents: int, seed: int) -> list[dict]:
    """Documents of 10 positions whose exact deltas gain about `effect` nats a position, of which stand-ins
    recover SHARES, with noise."""
    rng, made = np.random.default_rng(seed), []
    for i in range(documents):
        gain = effect * rng.lognormal(0, 0.6) * 10 + rng.normal(0, 0.5)
        ce = {"zero": 30.0, "exact": 30 - gain} | {
            name: 30 - gain * share + rng.normal(0, 0.3) for name, share in SHARES.items()
        }
        adapted = {"adapter": 30 - 1.25 * gain + rng.normal(0, 0.3), "exact": ce["exact"], "zero": 30.0}
        made.append({"doc_id": str(i), "positions": 10, "budgets": BUDGETS, "ce": ce, "adapted": adapted})
    return made


def test_an_effect_under_five_standard_errors_is_not_divided_by() -> None:
    found = recovered(planted(0.01, 40, 0), bootstrap=300, seed=0)["loss_recovered"]
    assert found.value is None and "standard errors" in found.reason


def test_an_adapter_without_any_effect_has_undefined_figures_and_no_nan() -> None:
    nothing = dict.fromkeys(("zero", "exact", "adapter", *SHARES), 1.0)
    silent = [{"positions": 1, "budgets": BUDGETS, "ce": nothing, "adapted": nothing}] * 40
    assert all(m.value is None and m.reason for m in recovered(silent, bootstrap=100, seed=0).values())


def test_few_documents_give_no_interval() -> None:
    found = recovered(planted(1.0, 20, 1), bootstrap=100, seed=0)["loss_recovered"]
    assert found.value is not None and found.ci is None and "20 evaluation documents" in found.reason


def test_a_figure_that_is_as_its_own_null_is_at_chance_though_another_null_is_lower() -> None:
    """The monitor recovers a tenth, which is what as many featureless atoms as the reference has do."""
    found = recovered(planted(1.0, 60, 3), bootstrap=400, seed=0)
    assert found["loss_recovered_reference"].p > 0.05 and found["loss_recovered"].p < 0.01
    assert found["loss_recovered_reference"].null == pytest.approx(0.1, abs=0.05)
    assert found["loss_recovered"].null == pytest.approx(0.3, abs=0.05)


@pytest.mark.prove
def test_intervals_of_recovered_loss_cover_its_value_on_all_documents() -> None:
    truth = recovered(planted(0.3, 50_000, 10**6), bootstrap=2, seed=0)
    for name in ("loss_recovered", "loss_reached"):
        hits = []
        for seed in range(200):
            m = recovered(planted(0.3, 60, seed), bootstrap=400, seed=seed)[name]
            hits.append(m.ci[0] <= truth[name].value <= m.ci[1])
        assert 0.90 <= np.mean(hits) <= 0.98, (name, np.mean(hits))


def test_a_model_whose_blocks_need_more_than_the_residual_stream_is_refused(tiny_model: Path) -> None:
    model = load_model(tiny_model)
    first: list[torch.Tensor] = []
    blocks(model)[0].register_forward_hook(lambda _m, _i, out: first.append(1 + out))
    blocks(model)[2].register_forward_hook(lambda _m, _i, out: out + first[-1])
    with pytest.raises(ModelError, match="more than the residual stream"):
        document_recovery(model, unit(2), [Patched("x", "base", AT, {})], positions=4)


def test_draws_of_the_null_that_differ_enter_p() -> None:
    """The same mean of the null: where its dictionaries agree the reference is better, where they scatter as
    much as that it is not shown."""
    made = planted(1.0, 60, 3)
    for r in made:
        r["ce"]["monitor"] -= 0.3 * (r["ce"]["zero"] - r["ce"]["exact"])  # recovers .4
    for spread, better in ((0.0, True), (0.5, False)):
        for r in made:
            zero, exact = r["ce"]["zero"], r["ce"]["exact"]
            for name, place in zip(nulls_of("monitor"), (-1, -0.5, 0, 0.5, 1), strict=True):
                r["ce"][name] = zero - (zero - exact) * (0.3 + spread * place)
        found = recovered(made, bootstrap=400, seed=0)["loss_recovered_reference"]
        assert found.null == pytest.approx(0.3, abs=1e-6) and (found.p < 0.01) is better, found
