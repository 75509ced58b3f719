"""Which latents are shown, and with which text."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from deltasae_ray.report.contexts import REACH, context_starts, window
from deltasae_ray.report.latents import encode_rows, latent_cards
from deltasae_ray.sae.dictionary import Dictionary
from deltasae_ray.shards.tokens import TokenTable


@dataclass
class Given:
    """A dictionary whose codes are the rows themselves."""

    alive: np.ndarray
    energy: np.ndarray

    def encode(self, x: np.ndarray) -> np.ndarray:
        return np.maximum(x, 0)


def table(
    contexts: int = 12, length: int = 30, per_doc: int = 2, marker: np.ndarray | None = None
) -> TokenTable:
    """Contexts of `length` tokens and BOS each, `per_doc` of them of one document; token ids count up over
    the table."""
    rows = contexts * (length + 1)
    return TokenTable(
        doc_id=np.repeat(
            np.array([f"doc-{i // per_doc}" for i in range(contexts)], dtype=object), length + 1
        ),
        corpus=np.repeat(np.array(["domain"] * contexts, dtype=object), length + 1),
        split=np.array(["eval"] * rows, dtype=object),
        position=np.tile(np.arange(length + 1, dtype=np.int32), contexts),
        token_id=np.arange(rows, dtype=np.int32),
        marker=np.zeros(rows, dtype=bool) if marker is None else marker,
    )


def names(ids: list[int]) -> list[str]:
    return [f" t{i}" for i in ids]


def cards_of(codes: np.ndarray, tokens: TokenTable, alive: list[bool], energy: list[float], **settings: Any):
    found = encode_rows(Given(np.array(alive), np.array(energy)), codes.astype(np.float32), tokens)
    chosen = settings.pop("chosen", range(len(alive)))
    return latent_cards(found, tokens, names, chosen, **settings)


def test_latents_are_ranked_by_their_share_of_the_energy_of_the_living():
    tokens = table()
    cards = cards_of(
        np.random.default_rng(0).random((len(tokens), 4)),
        tokens,
        [True, False, True, True],
        [1.0, 100.0, 5.0, 4.0],
    )
    assert [(c.rank, c.latent) for c in cards] == [(1, 2), (2, 3), (3, 0)]
    assert [c.energy_share for c in cards] == pytest.approx([0.5, 0.4, 0.1])


def test_top_contexts_are_the_strongest_tokens_of_different_documents():
    tokens = table(contexts=6, per_doc=2)
    codes = np.zeros((len(tokens), 1))
    codes[[5, 6, 40, 70, 160]] = [[9.0], [8.0], [7.0], [6.0], [5.0]]  # documents 0, 0, 0, 1, 2
    (card,) = cards_of(codes, tokens, [True], [1.0])
    assert [(c.doc_id, c.activations[c.center]) for c in card.top] == [
        ("doc-0", 9.0),
        ("doc-1", 6.0),
        ("doc-2", 5.0),
    ]
    assert card.peak == 9.0


def test_random_contexts_are_drawn_from_where_the_latent_fires_and_from_nowhere_else():
    tokens = table(contexts=40)
    codes = np.zeros((len(tokens), 1))
    fires = np.random.default_rng(1).choice(np.flatnonzero(tokens.position > 0), 200, replace=False)
    codes[fires] = 1.0
    drawn = []
    for seed in range(40):
        (card,) = cards_of(codes, tokens, [True], [1.0], seed=seed)
        assert card.firing_tokens == 200
        assert card.density == pytest.approx(200 / (40 * 30))
        assert len({c.tokens[c.center] for c in card.random}) == 5
        drawn += [int(c.tokens[c.center].removeprefix(" t")) for c in card.random]
    assert set(drawn) <= set(fires.tolist())
    assert (
        abs(np.mean(np.searchsorted(np.sort(fires), drawn)) - 99.5) < 15
    )  # uniform over them: 4 standard errors are 16


def test_the_contexts_of_a_latent_do_not_change_with_how_many_are_shown():
    tokens = table()
    codes = np.random.default_rng(2).random((len(tokens), 3))
    many = cards_of(codes, tokens, [True] * 3, [3.0, 2.0, 1.0])
    assert cards_of(codes, tokens, [True] * 3, [3.0, 2.0, 1.0], chosen=(1,)) == many[1:2]


def test_bos_is_never_shown_nor_counted():
    tokens = table()
    codes = np.where(tokens.position[:, None] == 0, 1000.0, 0.0)
    codes[4] = 1.0
    (card,) = cards_of(codes, tokens, [True], [1.0])
    assert (card.firing_tokens, card.peak) == (1, 1.0)


def test_a_latent_that_never_fires_has_no_contexts():
    tokens = table()
    (card,) = cards_of(np.zeros((len(tokens), 1)), tokens, [True], [1.0])
    assert (card.top, card.random, card.density, card.peak) == ((), (), 0.0, 0.0)


def test_windows_reach_twelve_tokens_and_never_leave_their_context():
    tokens = table(contexts=4, length=30)
    starts = context_starts(tokens)
    assert starts.tolist() == [0, 31, 62, 93]
    activation = np.arange(len(tokens), dtype=np.float32)
    for row in range(len(tokens)):
        found = window(tokens, starts, row, activation, names)
        ids = [int(t.removeprefix(" t")) for t in found.tokens]
        begin = 31 * (row // 31)
        assert ids == list(range(max(begin, row - REACH), min(begin + 31, row + REACH + 1)))
        assert ids[found.center] == row
        assert list(found.activations) == ids


def test_contexts_of_one_document_that_follow_each_other_are_told_apart():
    tokens = table(contexts=2, length=5, per_doc=2)
    assert context_starts(tokens).tolist() == [0, 6]
    assert context_starts(table(contexts=0)).tolist() == []


def test_a_real_dictionary_is_encoded_as_it_encodes_itself():
    generator = torch.Generator().manual_seed(0)
    decoder = torch.nn.functional.normalize(torch.randn(16, 8, generator=generator), dim=1)
    ones = torch.ones(16)
    dictionary = Dictionary(
        decoder.T.contiguous(), decoder, torch.zeros(16), torch.zeros(8), "topk", 3, firing=ones, energy=ones
    )
    tokens = table(contexts=2, length=9)
    deltas = torch.randn(len(tokens), 8, generator=generator).numpy()
    codes = encode_rows(dictionary, deltas, tokens)
    expected = dictionary.encode(deltas).numpy() * (tokens.position[:, None] > 0)
    np.testing.assert_array_equal(codes.matrix.toarray(), expected)
