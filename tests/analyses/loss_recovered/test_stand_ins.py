"""What is patched in for a delta, and that each has a null of its own size and k."""

import torch
from torch.nn.functional import normalize

from deltasae_ray.analyses.loss_recovered.figures import NULL_DRAWS, nulls_of
from deltasae_ray.analyses.loss_recovered.stand_ins import StandIn, TrainingRows, latents_used, stand_ins
from deltasae_ray.metrics.moments import Moments
from deltasae_ray.sae.dictionary import Dictionary

D_MODEL, ACTIVE = 32, 3


def dictionary(rows: torch.Tensor, atoms: torch.Tensor, k: int = ACTIVE) -> Dictionary:
    ones, mean = torch.ones(len(atoms)), rows.mean(0)
    return Dictionary(atoms.T.contiguous(), atoms, 0 * ones, mean, "topk", k, ones, ones, mean=mean).measured(
        rows
    )


def atoms_of(count: int, seed: int) -> torch.Tensor:
    return normalize(torch.randn(count, D_MODEL, generator=torch.Generator().manual_seed(seed)), dim=1)


def changes(atoms: torch.Tensor, tokens: int, seed: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return (
        torch.zeros(tokens, len(atoms)).scatter_(
            1, torch.rand(tokens, len(atoms), generator=g).topk(ACTIVE, 1).indices, 1.0
        )
        @ atoms
        + 0.5
    )


TRUTH = atoms_of(48, 0)
FIT, HELD = changes(TRUTH, 2000, 1), changes(TRUTH, 400, 2)
BASE = 10 * torch.randn(2000, D_MODEL, generator=torch.Generator().manual_seed(3))
TRAINING = TrainingRows(Moments.of(FIT), FIT, BASE)
OWN = dictionary(FIT, TRUTH)


def left(made: StandIn, base: torch.Tensor = BASE[:400]) -> float:
    return float((HELD - made.estimate(base, HELD)).square().sum() / (HELD - FIT.mean(0)).square().sum())


def test_stand_ins_of_dictionaries_are_what_their_names_say() -> None:
    twice, ones = torch.eye(D_MODEL).repeat(1, 2), torch.ones(2 * D_MODEL)
    sees_all = Dictionary(
        twice / 2, twice.T.contiguous(), 100 * ones, torch.zeros(D_MODEL), "standard", 0, ones, ones
    )
    made = stand_ins(OWN, sees_all, TRAINING, 0)
    assert left(made["encoder"]) < 0.9 * left(made["encoder_random_0"])
    assert left(made["monitor"]) < 1e-6, "an encoder that sees everything sees the change"
    assert made["monitor"].per_token == 2 * D_MODEL, "and uses all its latents for that"


def test_every_null_has_the_size_and_the_k_of_what_it_is_the_null_of() -> None:
    large = dictionary(BASE, atoms_of(200, 4), k=5)
    made = stand_ins(OWN, large, TRAINING, 0)
    alive = int(large.alive.sum())
    assert (made["encoder"].atoms, made["encoder"].per_token) == (48, ACTIVE)
    assert made["monitor"].atoms == alive > 100 and 5 <= made["monitor"].per_token <= 10
    for variant in ("encoder", "monitor"):
        nulls = [made[name] for name in nulls_of(variant)]
        assert {(n.atoms, n.per_token) for n in nulls} == {(made[variant].atoms, made[variant].per_token)}, (
            variant
        )
        assert len({left(n) for n in nulls}) == NULL_DRAWS, "each is a draw of its own"
    assert left(made["monitor_random_0"]) < left(made["encoder_random_0"]) - 0.05, "more atoms explain more"


def test_latents_are_counted_where_codes_differ() -> None:
    a, b = torch.tensor([[1.0, 0, 2, 0], [0, 0, 0, 0]]), torch.tensor([[1.0, 3, 0, 0], [0, 0, 0, 0]])
    assert latents_used(a, b) == 1
    assert latents_used(a, torch.zeros(())) == 1
    assert latents_used(torch.zeros(2, 4), torch.zeros(())) == 1, "pursuit takes one atom at least"
