"""Keys are made of content, and the halves of the documents share none."""

from dataclasses import replace

import numpy as np
import pytest

from deltasae_ray.fit.points import in_documents
from tests.fit.made import CFG, KEY, point

DIGESTS = {"r4": "04" * 8, "base": "base"}
OLD_KEY = "dictionaries/3c4bafc06c63896c"
"""Of `point()`, as studies in users' storage have it."""


def test_a_key_depends_on_everything_that_decides_the_dictionary() -> None:
    key = point().key(KEY, DIGESTS, CFG)
    others = [
        point(layer=3).key(KEY, DIGESTS, CFG),
        point(d_sae=48).key(KEY, DIGESTS, CFG),
        point(seed=1).key(KEY, DIGESTS, CFG),
        point(documents="A").key(KEY, DIGESTS, CFG),
        point("base").key(KEY, DIGESTS, CFG),
        replace(point(), control="gaussian").key(KEY, DIGESTS, CFG),
        replace(point(), control="frozen_decoder").key(KEY, DIGESTS, CFG),
        point().key(KEY, {"r4": "05" * 8}, CFG),
        point().key("harvest/other", DIGESTS, CFG),
        point().key(KEY, DIGESTS, replace(CFG, steps=61)),
        point().key(KEY, DIGESTS, replace(CFG, lr=1e-4)),
    ]
    assert len({key, *others}) == len(others) + 1


def test_a_key_depends_on_nothing_else() -> None:
    key = point().key(KEY, DIGESTS, CFG)
    for cfg in (replace(CFG, workers=7), replace(CFG, d_sae=(64,)), replace(CFG, seeds=3, search="asha")):
        assert point().key(KEY, DIGESTS, cfg) == key
    renamed = replace(point(), adapter="another name")
    assert renamed.key(KEY, {"another name": "04" * 8}, CFG) == key


def test_dictionaries_that_were_fitted_before_there_were_controls_keep_their_key() -> None:
    assert point().key(KEY, DIGESTS, CFG) == OLD_KEY


def test_halves_are_disjoint_by_document_and_about_equal() -> None:
    docs = np.array([f"doc {i // 3}" for i in range(3000)], dtype=object)
    a, b = in_documents(docs, "A"), in_documents(docs, "B")
    assert (a ^ b).all() and in_documents(docs, "all").all()
    assert not set(docs[a]) & set(docs[b])
    assert 0.45 < a.mean() < 0.55


@pytest.mark.parametrize("half", ["A", "B"])
def test_the_half_of_a_document_does_not_depend_on_the_others(half: str) -> None:
    docs = np.array([f"doc {i}" for i in range(100)], dtype=object)
    order = np.random.default_rng(0).permutation(100)
    assert set(docs[order][in_documents(docs[order], half)]) == set(docs[in_documents(docs, half)])
    assert in_documents(docs[:1], half)[0] == in_documents(docs, half)[0]
