"""Claims of every adapter, on the gangs, stored under a key of its texts and of what they are tested on."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from deltasae_ray.analyses.triggers.claims import Claim
from deltasae_ray.analyses.triggers.find import FEWEST_CONTEXTS, Elicited, Target, claims_of_texts
from deltasae_ray.analyses.triggers.hunt import Effort
from deltasae_ray.batches import TokenBatch
from deltasae_ray.corpus.corpus import Corpus
from deltasae_ray.corpus.documents import DOMAIN
from deltasae_ray.elicit.config import ElicitConfig
from deltasae_ray.elicit.run import elicit, neutral_texts, texts_from_json
from deltasae_ray.elicit.sampling import Sampling
from deltasae_ray.errors import CorpusError
from deltasae_ray.models.adapters import AdapterRef
from deltasae_ray.models.attached import tokenizer_meant
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.runtime.context import StageContext, Step, run_steps
from deltasae_ray.sae.identity import BASE
from deltasae_ray.storage import Storage, digest

CLAIMS = "claims.json"
"""All claims of a study, below its root: a list, best first."""
_CONTEXTS = 48
"""Neutral contexts at most; what a hunt does not need is left out."""
_VERSION = 1
"""Of the hunt: another way to find claims makes them anew."""


def neutral_unit(corpus: Corpus) -> TokenBatch:
    """Evaluation contexts without a marker, of unrelated text first, one a document before a second one.

    Raises:
        CorpusError: too few to search in some and to test in others.
    """
    rows: list[tuple[Any, ...]] = []
    for unit in corpus.of("eval"):
        for i, doc in enumerate(unit.doc_ids):
            if not unit.marker[i].any():
                order = (unit.corpus == DOMAIN, unit.starts[i], doc)
                rows.append((order, doc, unit.starts[i], unit.input_ids[i], unit.mask[i]))
    rows = sorted(rows, key=lambda row: row[0])[:_CONTEXTS]
    if len(rows) < FEWEST_CONTEXTS:
        raise CorpusError(
            f"the evaluation text has {len(rows)} contexts, and a trigger is tested in {FEWEST_CONTEXTS} or"
            " more: raise corpus.eval_tokens, or set elicit.samples=0"
        )
    width = max(len(row[3]) for row in rows)
    ids = np.stack([np.pad(row[3], (0, width - len(row[3])), mode="edge") for row in rows])
    mask = np.stack([np.pad(row[4], (0, width - len(row[4]))) for row in rows])
    return TokenBatch(
        "eval", "neutral", ids, mask, np.zeros_like(mask), tuple(row[1] for row in rows),
        tuple(row[2] for row in rows),
    )  # fmt: skip


@dataclass(frozen=True)
class Hunter:
    """Makes the step that finds the claims of one adapter; travels to every node."""

    storage: Storage
    model: ModelConfig
    model_digest: str
    effort: Effort
    seed: int

    def __call__(self) -> Step:
        return partial(self.hunt, tokenizer_meant(self.model, self.model_digest))

    def hunt(self, tokenizer: Any, model: nn.Module, neutral: TokenBatch, todo: Any) -> str:
        """Finds the claims of `todo["adapter"]` in the texts that `todo["texts"]` names, stores them under
        `todo["key"]`, and returns the key."""
        own, base, random = (
            None if key is None else texts_from_json(self.storage.read_json(key)) for key in todo["texts"]
        )
        assert own is not None and base is not None
        target = Target(model, todo["adapter"], tokenizer, neutral_texts(neutral), self.effort, self.seed)
        claims = claims_of_texts(target, Elicited(own, base, random))
        self.storage.write_json(todo["key"], {"claims": [asdict(claim) for claim in claims]})
        return todo["key"]


def claims(
    context: StageContext, adapters: Sequence[AdapterRef], cfg: ElicitConfig, seed: int
) -> dict[str, tuple[Claim, ...]]:
    """Adapter → its claims, best first, the random adapter's among them: what a hunt yields where nothing was
    learnt. Text is sampled and triggers are hunted where that is not stored yet.

    Args:
        adapters: the random one is told by its kind.
    """
    neutral, how = neutral_unit(context.corpus), Sampling(cfg.samples, cfg.length, seed=seed)
    texts = elicit(context, adapters, neutral, how)
    control = next((texts[a.name] for a in adapters if a.kind == "random"), None)
    effort = Effort(scan=cfg.scan)
    held = {a.name: (texts[a.name], texts[BASE], None if a.kind == "random" else control) for a in adapters}
    keys = {
        a.name: "triggers/"
        + digest([held[a.name], a.digest, neutral.name, vars(effort), seed, _VERSION])
        + ".json"
        for a in adapters
    }
    missing = [a for a in adapters if not context.storage.exists(keys[a.name])]
    hunter = Hunter(context.storage, context.model, context.model_digest, effort, seed)
    work = [(neutral, {"adapter": a.name, "key": keys[a.name], "texts": held[a.name]}) for a in missing]
    run_steps(context, missing, work, hunter, ("triggers", "adapters"))
    return {
        name: tuple(_claim(stored) for stored in context.storage.read_json(key)["claims"])
        for name, key in keys.items()
    }


_FIELDS = ("kind", "text", "reply", "confirmed", "statistic", "p", "q", "evidence")


def _claim(stored: dict[str, Any]) -> Claim:
    return Claim(**{**stored, "tokens": tuple(stored["tokens"])})


def write_claims(storage: Storage, claims: dict[str, tuple[Claim, ...]]) -> None:
    """Writes claims.json: each claim with its adapter and its rank among that adapter's, the first of each
    adapter before the second."""
    rows = []
    for adapter, mine in claims.items():
        for rank, claim in enumerate(mine, start=1):
            rates = claim.evidence.get("rates", {})
            own, base = rates.get("adapted_with"), rates.get("base_with")
            fields = {name: getattr(claim, name) for name in _FIELDS}
            rows.append(
                {
                    "rank": rank,
                    "adapter": adapter,
                    **fields,
                    "tokens": list(claim.tokens),
                    "rate_adapted": own and own["rate"],
                    "rate_base": base and base["rate"],
                    "ci": own and own["ci"],
                }
            )
    rows.sort(key=lambda row: (not row["confirmed"], row["rank"]))
    storage.write_json(CLAIMS, rows)
