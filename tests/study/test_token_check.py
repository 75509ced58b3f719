"""Too little text for the dictionaries that a study asks for is told before anything runs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deltasae_ray.analyses.config import DivergeConfig
from deltasae_ray.batches import TokenBatch
from deltasae_ray.corpus.config import CorpusConfig
from deltasae_ray.corpus.corpus import Corpus, build_corpus
from deltasae_ray.errors import ConfigError, CorpusError
from deltasae_ray.fit.config import FitConfig, ReferenceConfig
from deltasae_ray.fit.points import in_documents
from deltasae_ray.models.load import load_tokenizer
from deltasae_ray.storage import Storage
from deltasae_ray.study.config import StudyConfig
from deltasae_ray.study.inputs import open_study
from deltasae_ray.study.token_check import check_tokens, num_rows, tokens_to_fit
from tests.harvest.study import corpus as harvested
from tests.study.streamed import config
from tests.study.words import words


def text(documents: int, eval_width: int = 9) -> Corpus:
    """Documents of one context of 9 tokens, position 0 included, for fitting, and one for evaluation."""
    return Corpus(
        (
            unit("fit", tuple(f"doc {i}" for i in range(documents)), 9),
            unit("eval", ("held out",), eval_width),
        ),
        (),
    )


def unit(split: str, docs: tuple[str, ...], width: int) -> TokenBatch:
    shape = (len(docs), width)
    ids = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    return TokenBatch(
        split, "domain", ids, np.ones(shape, bool), np.zeros(shape, bool), docs, (0,) * len(docs)
    )


def study(d_sae: int, *controls: str, reference: str = "a/folder") -> StudyConfig:
    return StudyConfig(
        fit=FitConfig(d_sae=(d_sae,), k=(4,)),
        reference=ReferenceConfig(reference),
        diverge=DivergeConfig(controls=controls),  # type: ignore[arg-type]
        corpus=CorpusConfig(fit_tokens=1234),
    )


def test_a_dictionary_needs_a_row_for_each_latent() -> None:
    check_tokens(study(160), text(20))
    with pytest.raises(
        CorpusError,
        match=(
            r"fit split has 160 tokens .* in 20 documents, .*d_sae=161 needs 161: raise"
            r" corpus.fit_tokens=1234"
        ),
    ):
        check_tokens(study(161), text(20))
    with pytest.raises(CorpusError, match="needs 64"):
        check_tokens(study(8), text(7))


@pytest.mark.parametrize(
    ("controls", "reference", "half", "who"),
    [
        ((), "base", "A", "the toy reference"),
        (("base",), "a/folder", "B", "the control base"),
        (("split_half",), "a/folder", "[AB]", "split_half"),
    ],
)
def test_each_half_of_the_documents_that_something_is_fitted_on_needs_as_many(
    controls: tuple, reference: str, half: str, who: str
) -> None:
    with pytest.raises(CorpusError, match=rf"of half {half}, on which .*{who} .*d_sae=160 needs 160"):
        check_tokens(study(160, *controls, reference=reference), text(20))
    check_tokens(study(160, *controls, reference=reference), text(60))


def test_a_search_needs_as_many_of_what_its_candidates_are_fitted_to_and_a_document_to_judge_them_by() -> (
    None
):
    rows = num_rows(text(20), "fit", "search")
    assert 64 < rows < 160
    searched = replace(study(rows), fit=FitConfig(d_sae=(rows,), k=(4,), search="asha"))
    check_tokens(searched, text(20))
    check_tokens(study(rows + 1), text(20))
    with pytest.raises(
        CorpusError, match=rf"four fifths on which fit.search=asha .*d_sae={rows + 1} needs {rows + 1}"
    ):
        check_tokens(replace(searched, fit=replace(searched.fit, d_sae=(rows + 1,))), text(20))
    ids = np.array([f"doc {i}" for i in range(40)], dtype=object)
    fitted = tuple(ids[in_documents(ids, "search")])
    unjudged = Corpus((unit("fit", fitted, 9), unit("eval", ("held out",), 9)), ())
    with pytest.raises(CorpusError, match=rf"judges settings on a fifth .* {len(fitted)} none falls into it"):
        check_tokens(replace(searched, fit=replace(searched.fit, d_sae=(64,))), unjudged)


@pytest.mark.parametrize(
    ("d_sae", "k", "tokens"), [(512, 8, 26_500), (16_384, 32, 65_536), (16_384, 8, 184_320)]
)
def test_text_that_is_left_to_the_dictionaries_is_enough_for_the_largest(
    d_sae: int, k: int, tokens: int
) -> None:
    assert tokens_to_fit(FitConfig(d_sae=(256, d_sae), k=(k, 64))) == tokens


def test_a_study_settles_how_much_text_it_reads(tiny_model: Path, tmp_path: Path) -> None:
    asked = config(words(tiny_model, tmp_path / "root", "corpus.fit_tokens=0", "dry_run=true"))
    study = open_study(asked, Storage(asked.storage.root))
    assert study.cfg.corpus.fit_tokens == 26_500 and study.corpus.num_tokens("fit") > 2400
    with pytest.raises(ConfigError, match="set it where text is read without a study"):
        build_corpus(CorpusConfig(), load_tokenizer(tiny_model))


def test_evaluation_needs_a_token_beyond_position_0() -> None:
    with pytest.raises(CorpusError, match=r"eval split has no token .* 1 documents.*corpus.eval_tokens"):
        check_tokens(study(64), text(20, eval_width=1))


def test_rows_are_counted_as_the_worker_will_read_them(tiny_model: Path) -> None:
    corpus = harvested(tiny_model)
    for half in ("all", "A", "B"):
        read = [(u.positions() > 0) & in_documents(u.row_doc_ids(), half) for u in corpus.of("fit")]
        assert num_rows(corpus, "fit", half) == int(np.concatenate(read).sum()) > 0
