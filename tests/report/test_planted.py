"""The planted marker: found where a latent tells it, and only there."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import average_precision_score

from deltasae_ray.report.latents import Codes, encode_rows
from deltasae_ray.report.planted import _Ranking, find_planted
from deltasae_ray.shards.tokens import TokenTable
from tests.report.test_latents import Given, table

CONTEXTS, LENGTH = 40, 30


def marked(rng: np.random.Generator, share: float = 0.2) -> TokenTable:
    """The second half of the contexts is another text without markers; of the first, some hold a run of ten
    marker tokens."""
    marker = np.zeros((CONTEXTS, LENGTH + 1), dtype=bool)
    for i in range(CONTEXTS // 2):
        if rng.random() < share or i == 0:
            begin = int(rng.integers(1, LENGTH - 10))
            marker[i, begin : begin + 10] = True
    tokens = table(CONTEXTS, LENGTH, marker=marker.ravel())
    tokens.corpus[len(tokens) // 2 :] = "kjv"
    return tokens


def codes_of(values: np.ndarray, tokens: TokenTable) -> Codes:
    latents = values.shape[1]
    return encode_rows(
        Given(np.ones(latents, dtype=bool), np.arange(latents, 0, -1.0)), values.astype(np.float32), tokens
    )


def sparse_noise(rng: np.random.Generator, tokens: TokenTable, latents: int) -> np.ndarray:
    return rng.random((len(tokens), latents)) * (rng.random((len(tokens), latents)) < 0.1)


def test_a_latent_that_tells_the_marker_is_found_at_its_place_in_the_table():
    rng = np.random.default_rng(0)
    tokens = marked(rng)
    values = sparse_noise(rng, tokens, 20)
    values[:, 6] = 3 * tokens.marker * (rng.random(len(tokens)) < 0.8)
    finding = find_planted(codes_of(values, tokens), tokens)
    assert finding.recovered
    assert (finding.latent, finding.table_rank) == (6, 7)
    assert finding.p == pytest.approx(1 / 200)
    assert finding.ap is not None and finding.null_ap is not None and finding.ap > 0.7 > 3 * finding.null_ap
    assert finding.text.startswith("found at rank 7 of the latent table: latent 6, average precision 0.")


def test_a_latent_that_only_knows_the_text_is_not_a_finding():
    rng = np.random.default_rng(1)
    tokens = marked(rng)
    values = 5.0 * (tokens.corpus == "domain")[:, None]
    finding = find_planted(codes_of(values, tokens), tokens)
    assert finding.p is not None and finding.p > 0.5
    assert finding.text.startswith("not found: the best latent (0, rank 1 of the latent table)")


def test_a_latent_that_only_knows_a_position_is_not_a_finding():
    rng = np.random.default_rng(2)
    marker = np.zeros((CONTEXTS, LENGTH + 1), dtype=bool)
    marker[:8, 10:20] = True  # always at the same place
    tokens = table(CONTEXTS, LENGTH, marker=marker.ravel())
    values = sparse_noise(rng, tokens, 5)
    values[:, 0] = 5.0 * ((tokens.position >= 10) & (tokens.position < 20))
    finding = find_planted(codes_of(values, tokens), tokens)
    assert finding.latent == 0
    assert finding.p is not None and finding.p > 0.5
    assert not finding.recovered


def test_markers_that_fall_beyond_the_end_of_shorter_contexts_are_let_go():
    tokens = table(contexts=6, length=30)
    short = np.concatenate(
        [np.arange(5 * 31, 5 * 31 + 31), *(np.arange(i * 31, i * 31 + 4) for i in range(5))]
    )
    marker = np.zeros(len(short), dtype=bool)
    marker[20:31] = True
    cut = TokenTable(
        *(getattr(tokens, f)[short] for f in ("doc_id", "corpus", "split", "position", "token_id")),
        marker=marker,
    )
    finding = find_planted(codes_of((cut.marker * 2.0)[:, None], cut), cut, permutations=19)
    assert finding.ap == 1.0
    assert finding.p is not None and 0 < finding.p <= 1


def test_p_is_uniform_where_nothing_knows_the_marker():
    found = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        tokens = marked(rng)
        found.append(
            find_planted(
                codes_of(sparse_noise(rng, tokens, 15), tokens), tokens, permutations=49, seed=seed
            ).p
        )
    assert stats.kstest(np.array(found, dtype=float), "uniform").pvalue > 0.01


def test_no_marker_in_the_evaluation_rows_is_not_tested_rather_than_not_found():
    tokens = table()
    finding = find_planted(codes_of(np.ones((len(tokens), 2)), tokens), tokens)
    assert (finding.recovered, finding.latent) == (False, None)
    assert finding.text == "not tested: no marker token lies in the evaluation rows"


def test_the_same_seed_gives_the_same_finding():
    rng = np.random.default_rng(3)
    tokens = marked(rng)
    codes = codes_of(sparse_noise(rng, tokens, 8), tokens)
    assert find_planted(codes, tokens, seed=5) == find_planted(codes, tokens, seed=5)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_average_precision_is_that_of_scikit_learn_ties_included(seed: int, levels: int):
    rng = np.random.default_rng(seed)
    tokens = table(contexts=4, length=12)
    values = rng.integers(0, levels + 1, size=(len(tokens), 5)).astype(float) * (tokens.position[:, None] > 0)
    rows = np.flatnonzero(tokens.position > 0)
    label = rng.random(len(rows)) < 0.3
    label[0] = True
    codes = codes_of(values, tokens)
    ours = _Ranking.of(codes, rows, len(tokens)).average_precision(label)
    theirs = [average_precision_score(label, values[rows, latent]) for latent in codes.order]
    np.testing.assert_allclose(ours, theirs, atol=1e-12)
