"""The analyses of a study's dictionaries, an entry each, in the order of their rows in the table.

The comparison asks every entry and puts its rows into divergence.parquet, MLflow and the page.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from deltasae_ray.analyses.audit.run import AuditResults, audit_study
from deltasae_ray.analyses.config import DivergeConfig
from deltasae_ray.analyses.divergence.run import diverge_points
from deltasae_ray.analyses.leaf_spec import LeafSpec
from deltasae_ray.analyses.loss_recovered.run import recovered_rows
from deltasae_ray.analyses.table import DivergenceRow
from deltasae_ray.analyses.visibility.run import Seen, see_points
from deltasae_ray.models.adapters import AdapterRef
from deltasae_ray.runtime.context import StageContext


@dataclass(frozen=True)
class Asked:
    """What an analysis reads."""

    context: StageContext
    """Storage, model, text and gangs."""
    harvest_key: str
    leaves: Sequence[LeafSpec]
    """Every dictionary of the grid, with what stands beside it."""
    cfg: DivergeConfig
    adapters: Sequence[AdapterRef]
    """Adapters under study, without the random one."""


class Answer(Protocol):
    """What an analysis finds."""

    @property
    def rows(self) -> Sequence[DivergenceRow]: ...


@dataclass(frozen=True)
class Rows:
    """An answer that is nothing but rows of the table."""

    rows: Sequence[DivergenceRow]


A = TypeVar("A", bound=Answer, covariant=True)


@dataclass(frozen=True)
class Analysis(Generic[A]):
    """One question to the dictionaries of a study."""

    name: str
    """Name of the analysis' folder below `analyses/`."""
    ask: Callable[[Asked], A]
    """Finds the answer, stored under its key where it takes long."""
    control: str | None = None
    """Word of `diverge.controls` without which the analysis is not asked; None: it always is."""

    def of(self, answers: Mapping[str, Any]) -> A:
        """The analysis' own answer among those of all."""
        return answers[self.name]


DIVERGENCE = Analysis(
    "divergence",
    lambda asked: Rows(diverge_points(asked.context.storage, asked.harvest_key, asked.leaves, asked.cfg)),
)
LOSS_RECOVERED = Analysis(
    "loss_recovered",
    lambda asked: Rows(
        recovered_rows(asked.context, asked.harvest_key, asked.leaves, asked.cfg, asked.adapters)
    ),
    control="loss_recovered",
)
AUDIT: Analysis[AuditResults] = Analysis(
    "audit",
    lambda asked: audit_study(asked.context, asked.harvest_key, asked.leaves, asked.cfg, asked.adapters),
)
VISIBILITY: Analysis[Seen] = Analysis(
    "visibility", lambda asked: see_points(asked.context.storage, asked.harvest_key, asked.leaves, asked.cfg)
)
ANALYSES: tuple[Analysis[Answer], ...] = (DIVERGENCE, LOSS_RECOVERED, AUDIT, VISIBILITY)


def answers(asked: Asked) -> dict[str, Answer]:
    """Name → answer of every analysis that is asked for."""
    chosen = asked.cfg.chosen
    return {a.name: a.ask(asked) for a in ANALYSES if a.control is None or a.control in chosen}
