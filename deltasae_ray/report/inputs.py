"""Everything the report page says, as one JSON-serialisable value: saved beside the page, so that it can be
drawn again."""

import json
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from deltasae_ray.analyses.audit.table import AuditGroup
from deltasae_ray.analyses.behaviour.figures import Behaviour
from deltasae_ray.analyses.monitors.table import MonitorRow
from deltasae_ray.analyses.paper import Block
from deltasae_ray.analyses.table import DivergenceRow
from deltasae_ray.analyses.verdict import Answer, LayerVerdict
from deltasae_ray.errors import ConfigError
from deltasae_ray.metrics.visibility.answer import LatentVisibility
from deltasae_ray.report.latents import LatentCard
from deltasae_ray.report.planted import PlantedFinding
from deltasae_ray.sae.identity import DictionaryId


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
    adapter: str = ""
    layers: tuple[LayerVerdict, ...] = ()
    """Worst first; empty where the behaviour gate decided."""
    untold: tuple[str, ...] = ()
    """Figures by which the adapter is not told from random ones."""


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
    """Share of the delta's energy that this layer's own block put in, beside what it passed on; None where it
    was not measured."""


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
    losses: tuple[Behaviour, ...] = ()
    """What it does to predictions, by text."""
    demonstrated: bool | None = None
    """Whether the held-out loss on the text adapted to fell by more than chance; None for a control."""
    layers: tuple[LayerFacts, ...] = ()


@dataclass(frozen=True)
class CurvePoint:
    """One point of a curve."""

    x: float
    y: float


@dataclass(frozen=True)
class Curve(DictionaryId):
    """A line of a figure that the divergence table does not hold, of one dictionary."""

    figure: Literal["learning", "dead_latents", "calibration"]
    """What is drawn (y): over optimizer steps (x) the unexplained variance of training batches, or latents
    that were dead; over the share of features that a reference holds (x) the latents found not visible."""
    points: tuple[CurvePoint, ...]
    """x ascending."""
    label: str = ""
    """What tells its dash from those of other curves of the same adapter and layer, such as "d_sae 256";
    training seeds share one."""


@dataclass(frozen=True)
class LatentGroup(DictionaryId):
    """The latents shown of one dictionary."""

    alive: int
    """Latents that fire on some training token; the others are dead and are not listed."""
    cards: tuple[LatentCard, ...]


@dataclass(frozen=True)
class JudgedLatents(DictionaryId):
    """Which latents of one dictionary the reference can see."""

    latents: tuple[LatentVisibility, ...]


@dataclass(frozen=True)
class Timing:
    """One stage of the study; seconds are None where it was not planned, or did not run."""

    stage: str
    planned_s: float | None
    actual_s: float | None


@dataclass(frozen=True)
class Planted(DictionaryId):
    """The planted marker, looked for in one dictionary."""

    finding: PlantedFinding


@dataclass(frozen=True)
class Rate:
    """A share of contexts with its 95 % interval."""

    rate: float
    low: float
    high: float


@dataclass(frozen=True)
class LearntTrigger:
    """A confirmed trigger, as a model wrote and says it."""

    text: str
    reply: str
    rates: dict[str, Rate]
    """Where (adapted_with, adapted_without, base_with, base_without) → how often a fresh context goes on
    so."""
    q: float


@dataclass(frozen=True)
class Learnt:
    """Confirmed claims of one adapter."""

    adapter: str
    triggers: tuple[LearntTrigger, ...]
    words: dict[str, tuple[str, ...]]
    """Kind of claim → texts that the adapter writes more often, or less, than base and random adapter."""
    control: bool = False
    """The random adapter, which learnt nothing."""


@dataclass(frozen=True)
class ReportInputs:
    """What the page is made of."""

    title: str
    created: str
    """Date and time, as it is to be read."""
    model: str
    reference: str
    """The reference's name, used wherever it is spoken of, without an article: "toy reference (20,112
    tokens)"."""
    layers: tuple[int, ...]
    reference_given: bool = False
    """It was not fitted here, so that the base control has another recipe."""
    model_note: str = ""
    """One sentence on the weights, such as that they were dequantised; it stands under the title."""
    atoms: int = 8
    """Atoms per token of the missing share and of FVU (diverge.atoms), which need not be the dictionaries'
    k."""
    corpora: tuple[CorpusFacts, ...] = ()
    adapters: tuple[AdapterFacts, ...] = ()
    verdicts: tuple[VerdictLines, ...] = ()
    """One per adapter."""
    learnt: tuple[Learnt, ...] = ()
    """What each adapter is claimed to have learnt; empty where nothing was elicited."""
    rows: tuple[DivergenceRow, ...] = ()
    curves: tuple[Curve, ...] = ()
    audits: tuple[AuditGroup, ...] = ()
    """With the rows that the page shows; all of them are in audit.parquet."""
    judged: tuple[JudgedLatents, ...] = ()
    """Of the dictionaries that are audited."""
    latents: tuple[LatentGroup, ...] = ()
    monitors: tuple[MonitorRow, ...] = ()
    """What becomes of the user's own monitors."""
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
        plain = msgspec.to_builtins(self, enc_hook=lambda number: number.item())  # numpy's numbers
        return json.dumps(plain, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "ReportInputs":
        """Inverse of `to_json`.

        Raises:
            ConfigError: the text was written by another version, or is not a report at all.
        """
        try:
            return msgspec.json.decode(text, type=cls)
        except (msgspec.DecodeError, AssertionError) as e:  # a measure asserts that its parts belong together
            raise ConfigError(
                f"this is no report.json of this version ({e}): run the report stage again"
            ) from e
