"""Everything the report page says, as one JSON-serialisable value: saved beside the page, so that it can be drawn again."""

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from deltasae_ray.analyses.audit.table import AuditGroup
from deltasae_ray.analyses.paper import Block
from deltasae_ray.analyses.verdict import Answer
from deltasae_ray.errors import ConfigError
from deltasae_ray.report.latents import LatentCard
from deltasae_ray.report.planted import PlantedFinding


@dataclass(frozen=True)
class Row:
    """One row of the divergence table: a measure of one dictionary, or of one adapter and layer."""

    adapter: str
    rank: int | None
    adapter_seed: int | None
    layer: int
    d_sae: int | None
    k: int | None
    architecture: str | None
    seed: int | None
    reference: str | None
    metric: str
    value: float | None
    null: float | None = None
    ceiling: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    p: float | None = None
    kappa: float | None = None
    n: int = 0
    reason: str = ""
    kappa_low: float | None = None
    kappa_high: float | None = None
    lacks: str = ""
    """Which of null, ceiling, kappa and p is missing, and why."""


@dataclass(frozen=True)
class CorpusFacts:
    """One text of the study."""

    name: str
    adapted_to: bool
    """True for the text the adapters were, or will be, trained on."""
    tokens: dict[str, int]
    """Split → tokens read of it."""
    documents: dict[str, int]
    """Split → documents."""


@dataclass(frozen=True)
class VerdictLines:
    """The verdict of one adapter as the page sets it."""

    head: str
    """Such as "r16, layer 12: PARTLY VISIBLE"."""
    label: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class LossChange:
    """Mean next-token loss, in nats, of one text with the adapter off and on."""

    corpus: str
    before: float
    after: float
    change_low: float | None = None
    """95 % interval of after - before, over documents."""
    change_high: float | None = None
    kl: float | None = None
    """Mean KL divergence of the adapted from the base model's predictions, in nats."""


@dataclass(frozen=True)
class LayerFacts:
    """What the harvest measured of one adapter at one layer."""

    layer: int
    snr: float | None = None
    """Energy of the delta over the energy of the measured noise floor; None where it was not measured."""
    relative_norm: float | None = None
    """Mean norm of the delta over mean norm of the base residual."""
    top_coordinates: float | None = None
    """Share of the delta's energy in its three largest coordinates."""
    top_tokens: float | None = None
    """Share of the delta's energy in the 0.1 % of tokens that carry most."""
    mean_share: float | None = None
    """Share of the delta's energy in its mean."""
    injected: float | None = None
    """Share of the delta's energy that this layer's own block put in, beside what it passed on; None where it was not measured."""


@dataclass(frozen=True)
class AdapterFacts:
    """One adapter under study, or a control."""

    name: str
    rank: int
    seed: int | None
    """Seed of its training; None where it was given and that is not known."""
    control: bool = False
    """True for the random adapter."""
    steps: int | None = None
    """Optimizer steps of its training; None where it was given."""
    tokens: int | None = None
    """Training tokens."""
    planted: int | None = None
    """Training contexts that held the planted marker; None where it was given, and of a control."""
    losses: tuple[LossChange, ...] = ()
    demonstrated: bool | None = None
    """Whether the held-out loss on the text adapted to fell by more than chance; None for a control."""
    layers: tuple[LayerFacts, ...] = ()


@dataclass(frozen=True)
class CurvePoint:
    """One point of a curve."""

    x: float
    y: float


@dataclass(frozen=True)
class Curve:
    """A line of a figure that the divergence table does not hold."""

    figure: Literal["learning", "dead_latents"]
    """What is drawn (y) over optimizer steps (x): unexplained variance of training batches, or latents that were dead."""
    adapter: str
    layer: int
    points: tuple[CurvePoint, ...]
    """x ascending."""
    label: str = ""
    """What tells its dash from those of other curves of the same adapter and layer, such as "d_sae 256"; training seeds share one."""
    seed: int = 0
    """Training seed of the dictionary."""


@dataclass(frozen=True)
class LatentGroup:
    """The latents shown of one dictionary."""

    adapter: str
    layer: int
    d_sae: int
    k: int
    seed: int
    alive: int
    """Latents that fire on some training token; the others are dead and are not listed."""
    cards: tuple[LatentCard, ...]


@dataclass(frozen=True)
class Timing:
    """One stage of the study; seconds are None where it was not planned, or did not run."""

    stage: str
    planned_s: float | None
    actual_s: float | None


@dataclass(frozen=True)
class Planted:
    """The planted marker, looked for in one dictionary."""

    adapter: str
    layer: int
    d_sae: int
    finding: PlantedFinding


@dataclass(frozen=True)
class ReportInputs:
    """What the page is made of."""

    title: str
    created: str
    """Date and time, as it is to be read."""
    model: str
    reference: str
    """The reference's name, used wherever it is spoken of, without an article: "toy reference (20,112 tokens)"."""
    layers: tuple[int, ...]
    reference_given: bool = False
    """It was not fitted here, so that the base control has another recipe."""
    model_note: str = ""
    """One sentence on the weights, such as that they were dequantised; it stands under the title."""
    atoms: int = 8
    """Atoms per token of the missing share and of FVU (diverge.atoms), which need not be the dictionaries' k."""
    corpora: tuple[CorpusFacts, ...] = ()
    adapters: tuple[AdapterFacts, ...] = ()
    verdicts: tuple[VerdictLines, ...] = ()
    """One per adapter."""
    rows: tuple[Row, ...] = ()
    curves: tuple[Curve, ...] = ()
    audits: tuple[AuditGroup, ...] = ()
    """With the rows that the page shows; all of them are in audit.parquet."""
    latents: tuple[LatentGroup, ...] = ()
    planted: tuple[Planted, ...] = ()
    planted_text: str = ""
    """The marker and its reply, as they were written into the text; empty where nothing was planted."""
    timings: tuple[Timing, ...] = ()
    statements: tuple[str, ...] = ()
    """Plain sentences to stand under the verdicts."""
    rank_claims: tuple[str, ...] = ()
    """Sentences that compare ranks. Shown only where every rank has two adapter seeds or more."""
    paper: tuple[Block, ...] = ()
    """The published figures beside ours."""
    failures: dict[str, str] = field(default_factory=dict)
    """Trial that failed after its retries → its error."""
    not_tested: tuple[str, ...] = ()
    """What this study cannot speak of, each as it continues "Not tested:"."""
    config: str = ""
    """The resolved configuration, as YAML."""
    digests: dict[str, str] = field(default_factory=dict)
    """What → digest of its content."""
    versions: dict[str, str] = field(default_factory=dict)
    """Library → version."""

    def to_json(self) -> str:
        """Raises ValueError for NaN or infinity, which no figure may be."""
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "ReportInputs":
        """Inverse of `to_json`.

        Raises:
            ConfigError: the text was written by another version, or is not a report at all.
        """
        try:
            return _build(cls, json.loads(text))
        except (TypeError, KeyError, AttributeError, json.JSONDecodeError) as e:
            raise ConfigError(f"this is no report.json of this version ({e}): run the report stage again") from e


def _build(hint: Any, value: Any) -> Any:
    """`value`, as JSON gives it, in the types that `hint` names: dataclasses, tuples, dicts, unions with None."""
    if value is None:
        return None
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return hint(**{name: _build(hints[name], inner) for name, inner in value.items()})  # type: ignore[operator]
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _build(next(h for h in inner if h is not types.NoneType), value)
    if origin is tuple:
        return tuple(_build(inner[0], item) for item in value)
    if origin is dict:
        return {key: _build(inner[1], item) for key, item in value.items()}
    return value
