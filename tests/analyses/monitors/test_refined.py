"""A repair takes in what it leaves on the monitor's own texts, and tells of no document that it has seen."""

import numpy as np
import torch

from deltasae_ray.analyses.monitors.figures import auroc
from deltasae_ray.analyses.monitors.monitor import Monitor, Repair, fit_repair
from deltasae_ray.analyses.monitors.refined import FEWEST, reads_one_vector, refined, refined_scores
from deltasae_ray.hookpoints import Hookpoint
from deltasae_ray.sae.dictionary import Dictionary

D = 12
GENERATOR = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(D, generator=GENERATOR)
PROBE = Monitor("p", Hookpoint(1), "last", WEIGHT, 0.3)
IDENTITY = Repair(torch.eye(D), torch.zeros(D))
LABEL = np.arange(200) % 2 == 0


def dictionary() -> Dictionary:
    atoms = torch.eye(D)
    ones = torch.ones(D)
    return Dictionary(atoms, atoms, 0 * ones, torch.zeros(D), "topk", D, ones, ones, {})


def drawn(count: int = 200) -> torch.Tensor:
    return torch.randn(count, D, generator=GENERATOR)


def documents() -> torch.Tensor:
    return drawn() + 2 * torch.from_numpy(LABEL)[:, None] * WEIGHT / WEIGHT.norm()


def area(scores: np.ndarray) -> float:
    return float(auroc(scores, LABEL, np.ones((1, 200)))[0])


def turned(h: torch.Tensor, strength: float) -> torch.Tensor:
    unit = WEIGHT / WEIGHT.norm()
    return h - strength * (h @ unit)[:, None] * unit


def test_what_the_adapter_does_to_these_texts_alone_is_repaired() -> None:
    other, own = drawn(1000), documents()
    repair = fit_repair(turned(other, 0.1), other, torch.arange(1000) % 4 == 3)
    adapted = turned(own, 2)
    stale = area(PROBE.repaired(repair).token_scores(adapted).numpy())
    assert stale < 0.2 < area(PROBE.token_scores(own).numpy()) - 0.6
    assert area(refined_scores(PROBE, repair, adapted, own)) > area(PROBE.token_scores(own).numpy()) - 0.01
    fixed = PROBE.repaired(refined(PROBE, repair, adapted, own))
    assert torch.allclose(fixed.token_scores(adapted), PROBE.token_scores(own), atol=0.01)


def test_only_what_the_probe_reads_is_changed() -> None:
    own = documents()
    found = refined(PROBE, IDENTITY, turned(own, 2), own)
    across = torch.linalg.svd(WEIGHT[None]).Vh[1:].T  # directions that the probe does not read
    assert torch.allclose(found.matrix @ across, across, atol=1e-5)
    assert torch.allclose(found.offset @ across, torch.zeros(D - 1), atol=1e-5)


def test_where_nothing_of_the_text_is_left_repair_returns_nothing() -> None:
    assert abs(area(refined_scores(PROBE, IDENTITY, drawn(), documents())) - 0.5) < 0.1


def test_a_dictionarys_latents_are_repaired_at_the_last_token() -> None:
    monitor = Monitor("d", Hookpoint(1), "last", dictionary=dictionary(), latents=(0, 1))
    own = documents()
    adapted = own + 3
    found = refined(monitor, IDENTITY, adapted, own)
    assert torch.allclose(monitor.repaired(found).token_scores(adapted), monitor.token_scores(own), atol=0.05)


def test_a_score_of_many_tokens_is_left_to_the_map_of_the_studys_text() -> None:
    reads = {
        reads: reads_one_vector(Monitor("p", Hookpoint(1), reads, WEIGHT))
        for reads in ("last", "mean", "max", "each")
    }
    assert reads == {"last": True, "mean": True, "max": False, "each": False} and FEWEST == 30
    assert not reads_one_vector(Monitor("d", Hookpoint(1), "mean", dictionary=dictionary(), latents=(0,)))
