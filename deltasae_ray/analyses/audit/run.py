"""The audit of a study: figures, lens and causal effects of every judged dictionary, put together row by
row."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from deltasae_ray.analyses.audit.figures import TOTALS, AuditedLatent
from deltasae_ray.analyses.audit.table import AuditGroup, AuditRow
from deltasae_ray.analyses.audit.task import FIRST, FIRST_POSITIONS, MEAN, Audited, AuditSpec, audit_leaves
from deltasae_ray.analyses.causal.figures import ABLATED, ADDED
from deltasae_ray.analyses.causal.run import TRIED, causal_effects
from deltasae_ray.analyses.config import SEED, DivergeConfig
from deltasae_ray.analyses.leaf_spec import LeafSpec
from deltasae_ray.analyses.lens.run import Reading, lenses
from deltasae_ray.analyses.lens.steering import OPENING, Steered, steer
from deltasae_ray.analyses.loss_recovered.run import judged
from deltasae_ray.analyses.table import DivergenceRow, corrected
from deltasae_ray.metrics.measure import Measure, undefined
from deltasae_ray.models.adapters import AdapterRef
from deltasae_ray.runtime.context import StageContext

TokensToText = Callable[[list[int]], str]
UNASKED = undefined("not asked for (controls=causal)")
UNTRIED = undefined(f"only the mean change and the first {TRIED} latents are tried")
UNREAD = undefined("only the latents shown are read")


@dataclass(frozen=True)
class AuditResults:
    """All that is known of the audited dictionaries, by leaf."""

    audits: dict[LeafSpec, Audited]
    lenses: dict[LeafSpec, dict[str, Reading]]
    effects: dict[LeafSpec, dict[str, dict[str, Measure]]] | None
    """None where causal was not among the controls."""
    steered: dict[LeafSpec, Steered]
    """Empty for a sharded model."""

    @property
    def rows(self) -> list[DivergenceRow]:
        """What audits come to, for the table of all metrics."""
        rows = [
            DivergenceRow.of(leaf, name, m)
            for leaf, audited in self.audits.items()
            for name, m in audited.audit.totals.items()
        ]
        return corrected(rows)


def audit_study(
    context: StageContext,
    harvest_key: str,
    leaves: Sequence[LeafSpec],
    cfg: DivergeConfig,
    adapters: Sequence[AdapterRef],
) -> AuditResults:
    """Audits what has not been audited yet."""
    specs = [AuditSpec.of(leaf, leaves) for leaf in judged(leaves)]
    audits = audit_leaves(context.storage, harvest_key, specs, cfg)
    read = lenses(context, audits, SEED)
    effects = causal_effects(context, audits, cfg, adapters) if "causal" in cfg.chosen else None
    return AuditResults(audits, read, effects, steer(context, audits))


def audit_groups(results: AuditResults, text: TokensToText) -> list[AuditGroup]:
    """Every row of every audit, tokens as text."""
    return [_group(leaf, audited, results, text) for leaf, audited in results.audits.items()]


@dataclass(frozen=True)
class _Extras:
    """What one audit's directions were found to do."""

    lens: Mapping[str, Reading]
    effects: Mapping[str, dict[str, Measure]] | None
    steered: Steered | None
    text: TokensToText

    def causal(self, name: str) -> dict[str, Measure]:
        """Sides of the causal effect."""
        if self.effects is None:
            return dict.fromkeys((ABLATED, ADDED), UNASKED)
        return self.effects.get(name, dict.fromkeys((ABLATED, ADDED), UNTRIED))

    def words(self, name: str) -> dict:
        """Fields of a row that hold text."""
        steered = () if self.steered is None else self.written(self.steered.texts.get(name, ()))
        reading = self.lens.get(name)
        if reading is None:
            return {"lens_peak": UNREAD, "promoted": (), "suppressed": (), "steered": steered}
        promoted, suppressed = (
            tuple(self.text([token]) for token in tokens) for tokens in (reading.promoted, reading.suppressed)
        )
        return {"lens_peak": reading.peak, "promoted": promoted, "suppressed": suppressed, "steered": steered}

    def written(self, texts: Sequence[Sequence[int]]) -> tuple[str, ...]:
        """Texts of one direction, a strength each."""
        return tuple(OPENING + self.text(list(tokens)) for tokens in texts)


def _group(leaf: LeafSpec, audited: Audited, results: AuditResults, text: TokensToText) -> AuditGroup:
    effects = None if results.effects is None else results.effects.get(leaf, {})
    extras = _Extras(results.lenses.get(leaf, {}), effects, results.steered.get(leaf), text)
    rows = [_row(row, MEAN if row.latent is None else str(row.latent), extras) for row in audited.audit.rows]
    if FIRST in audited.directions:
        rows.insert(1, _first_tokens(extras))
    blind, again = (audited.audit.totals[name] for name in TOTALS)
    return AuditGroup(
        **vars(leaf.identity),
        reference=leaf.reference_name,
        alive=audited.audit.alive,
        rows=tuple(rows),
        blind_energy=blind,
        repeating_energy=again,
        notes=tuple(_notes(audited, results)),
        random_steered=tuple(extras.written(t) for t in extras.steered.random) if extras.steered else (),
    )


def _row(row: AuditedLatent, name: str, extras: _Extras) -> AuditRow:
    tried = extras.causal(name)
    return AuditRow(**vars(row), name=name, ablated=tried[ABLATED], added=tried[ADDED], **extras.words(name))


def _first_tokens(extras: _Extras) -> AuditRow:
    """The activation difference lens: read through the lens and by steering, and nothing else."""
    beside = undefined("a baseline that is only read through the lens and by steering")
    return AuditRow(
        name=FIRST, latent=None, rank=None, peak_rank=None, energy_share=None, peak_energy=None,
        invisibility=beside, percentile=None,
        percentile_haar=None, blind_spot=None, reproducibility=beside, nearest=None, nearest_cosine=None,
        ablated=beside,
        added=beside, **extras.words(FIRST),
    )  # fmt: skip


def _notes(audited: Audited, results: AuditResults) -> list[str]:
    if not audited.audit.rows:
        return [f"Nothing to audit: {audited.audit.totals[TOTALS[0]].reason}."]
    again, notes = audited.audit.totals["latent_repeating_energy"], []
    if again.value is None:
        notes.append(f"Reproducibility is undefined, and rows are ranked by energy alone: {again.reason}.")
    if FIRST in audited.directions:
        tokens = f"{audited.first_tokens:,} tokens at positions 1 to {FIRST_POSITIONS} of unrelated text"
        notes.append(
            f"First tokens: the mean change on {tokens}, read through the lens (activation difference lens)."
        )
    else:
        notes.append("The activation difference lens is undefined: this study reads no unrelated text.")
    if not results.steered:
        notes.append("No text was steered: it is written token by token, by a model that is not sharded.")
    if results.effects is None:
        notes.append("Causal effects were not asked for (controls=causal).")
    return notes
