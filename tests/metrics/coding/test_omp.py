"""Batched pursuit against scikit-learn's, and on codes that are known."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import orthogonal_mp

from deltasae_ray.errors import GeometryError
from deltasae_ray.metrics.coding.omp import pursue
from deltasae_ray.metrics.coding.parts import Part, pursue_parts

G = torch.Generator().manual_seed(0)


def problem(
    dtype: torch.dtype, tokens: int = 40, d_model: int = 48, atoms: int = 100
) -> tuple[torch.Tensor, torch.Tensor]:
    scales = torch.logspace(0, -1.2, d_model)
    x, a = (torch.randn(n, d_model, generator=G) * scales for n in (tokens, atoms))
    return x.to(dtype), torch.nn.functional.normalize(a, dim=1).to(dtype)


@pytest.mark.parametrize("k", [1, 4, 8, 32])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_it_agrees_with_scikit_learn(k: int, dtype: torch.dtype, tolerance: float) -> None:
    x, atoms = problem(dtype)
    codes = orthogonal_mp(atoms.T.double().numpy(), x.T.double().numpy(), n_nonzero_coefs=k)
    left = x.double().numpy() - codes.reshape(len(atoms), -1).T @ atoms.double().numpy()
    found = pursue(x, atoms, k)
    np.testing.assert_allclose(found.residual_energy[:, k], (left**2).sum(1), atol=tolerance)
    if dtype == torch.float64:
        assert all(
            set(np.nonzero(codes.reshape(len(atoms), -1)[:, i])[0]) == set(found.support[i].tolist())
            for i in range(len(x))
        )


def test_energy_falls_with_every_atom_and_the_residual_is_orthogonal_to_all_chosen() -> None:
    x, atoms = problem(torch.float64)
    found = pursue(x, atoms, 8)
    assert bool((found.residual_energy.diff(dim=1) <= 1e-12).all())
    inside = torch.einsum("td,tkd->tk", found.residual, atoms[found.support])
    assert float(inside.abs().max()) < 1e-10


def test_planted_codes_of_either_sign_are_found() -> None:
    atoms = torch.linalg.qr(torch.randn(32, 32, generator=G)).Q
    x = 2 * atoms[3] - 5 * atoms[7]
    found = pursue(x[None], atoms, 2)
    assert found.support[0].tolist() == [7, 3]
    assert found.fvu(2) == pytest.approx(0, abs=1e-10)


def test_blocks_and_the_kept_gram_matrix_do_not_change_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    x, atoms = problem(torch.float32, tokens=700)
    whole = pursue(x, atoms, 20)
    monkeypatch.setattr("deltasae_ray.metrics.coding.omp.GRAM_ATOMS", 10)
    monkeypatch.setattr("deltasae_ray.metrics.coding.omp._BLOCK_NUMBERS", 1)
    torch.testing.assert_close(
        pursue(x, atoms, 20).residual_energy, whole.residual_energy, rtol=1e-4, atol=1e-6
    )


def test_parts_that_are_turned_code_as_all_their_atoms_do(monkeypatch: pytest.MonkeyPatch) -> None:
    x, atoms = problem(torch.float32, tokens=300, atoms=150)
    turn = torch.linalg.qr(torch.randn(48, 48, generator=G)).Q
    first, other = Part.of(3 * atoms[:110]), Part.of(atoms[110:])
    turned = first.turned(first.atoms @ turn)
    for parts in ((first, other), (turned, other), (other, turned)):
        whole = pursue(x, torch.cat([part.atoms for part in parts]), 10)
        torch.testing.assert_close(
            pursue_parts(x, parts, 10).residual_energy, whole.residual_energy, rtol=1e-4, atol=1e-6
        )
    monkeypatch.setattr("deltasae_ray.metrics.coding.parts.GRAM_ATOMS", 10)
    assert torch.equal(pursue_parts(x, (other, turned), 10).residual_energy, whole.residual_energy)


def test_what_is_explained_stays_explained() -> None:
    atoms = torch.eye(4)
    found = pursue(torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0]]), torch.cat([atoms, atoms]), 4)
    assert found.support[0].tolist() == [0, -1, -1, -1]
    assert found.support[1].tolist() == [-1] * 4
    assert float(found.residual_energy[:, 1:].max()) == 0
    assert bool(torch.isfinite(found.residual_energy).all())


def test_more_atoms_than_dimensions_explain_everything() -> None:
    x, atoms = problem(torch.float64, d_model=6, atoms=20)
    assert pursue(x, atoms, 12).fvu(12) < 1e-12


def test_atoms_need_not_be_scaled() -> None:
    x, atoms = problem(torch.float64)
    torch.testing.assert_close(pursue(x, 7 * atoms, 4).residual_energy, pursue(x, atoms, 4).residual_energy)


def test_bad_input_is_refused() -> None:
    x, atoms = problem(torch.float32)
    for k in (0, 101):
        with pytest.raises(GeometryError, match="choose 1 to 100"):
            pursue(x, atoms, k)
    with pytest.raises(GeometryError, match="another model"):
        pursue(x[:, :5], atoms, 1)
