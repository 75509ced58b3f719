"""A study for notebooks and scripts: run it, then read its tables; a finished one is read without a run."""

import contextlib
import io
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import yaml
from markupsafe import Markup

from deltasae_ray.errors import ConfigError, StorageError
from deltasae_ray.redaction import redacted_output
from deltasae_ray.report.inputs import VerdictLines
from deltasae_ray.shards.opening import open_shards
from deltasae_ray.shards.reader import ShardSet
from deltasae_ray.storage import Storage
from deltasae_ray.study.cluster_check import resolve_root
from deltasae_ray.study.config import StudyConfig
from deltasae_ray.study.main import parse_words

if TYPE_CHECKING:
    import altair as alt
    import pandas as pd

    from deltasae_ray.report.inputs import ReportInputs

TABLE, LATENTS, PAGE, REPORT = "divergence.parquet", "audit.parquet", "report.html", "report.json"


class Study:
    """What adapters added to a model, asked from Python: `Study(model=…, adapters=[…], text=…).run()`.

    Args:
        model: base model: a folder, a hub id, or builtin:gemma3-270m.
        adapters: folders or hub ids of LoRA adapters; without any, adapters are trained.
        text: what they were, or will be, trained on: a file, a folder, or several.
        root: where everything is written, and found again.
        options: any other option by its key, such as {"fit.k": 16, "layers": [5, 10]}.

    Raises:
        ConfigError: an option that does not exist, or a value that it cannot have.
    """

    def __init__(
        self,
        model: str = "builtin:gemma3-270m",
        *,
        adapters: Sequence[str] = (),
        text: str | Sequence[str] = (),
        root: str = "runs/study",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        values = {"model.base": str(model), "storage.root": str(root), **(options or {})}
        values |= {"adapters": [str(place) for place in adapters]} if adapters else {}
        paths = [str(text)] if isinstance(text, (str, Path)) else [str(path) for path in text]
        values |= {"corpus.path": paths} if paths else {}
        self.cfg = _configured(values)

    def plan(self) -> None:
        """Prints what the study costs; checks its inputs, and writes nothing."""
        self._run(replace(self.cfg, dry_run=True))

    def run(self) -> "Study":
        """Runs every stage that is not done yet, on the Ray that is initialised, or else one of its own."""
        self._run(self.cfg)
        return self

    def _run(self, cfg: StudyConfig) -> None:
        from deltasae_ray.study.run import run

        with redacted_output():
            run("sweep", cfg)

    @property
    def verdicts(self) -> tuple[VerdictLines, ...]:
        """What was said of each adapter.

        Raises:
            StorageError: the study has not come to its end.
        """
        return msgspec.json.decode(self._bytes(REPORT), type=_Report).verdicts

    def table(self) -> "pd.DataFrame":
        """Every figure: a row for each adapter, layer, dictionary, metric and variant.

        Raises:
            StorageError: the study has not come to its end.
        """
        return self._read(TABLE)

    def latents(self, adapter: str | None = None, layer: int | None = None) -> "pd.DataFrame":
        """The directions that each adapter wrote, as the audit ranks them.

        Args:
            adapter: of this one only.
            layer: of this one only.

        Raises:
            StorageError: the study has not come to its end.
        """
        rows = self._read(LATENTS)
        for column, wanted in (("adapter", adapter), ("layer", layer)):
            rows = rows if wanted is None else rows.loc[rows[column] == wanted, :]
        return rows

    def figure(self, metric: str = "visible_share") -> "alt.Chart":
        """A figure by layer and adapter, as the page draws it; `.save(…)` writes a file.

        Raises:
            StorageError: the study has not come to its end.
            ConfigError: the study has no such figure.
        """
        import altair as alt

        from deltasae_ray.report.charts import study_spec
        from deltasae_ray.report.page_data import page_data

        data, _ = page_data(self._report())
        spec = study_spec(data, metric)
        if spec is None:
            known = ", ".join(chart.metric for chart in data.charts)
            raise ConfigError(f"this study has no figure {metric!r}; it has {known}")
        return alt.Chart.from_dict(spec)

    def page(self) -> str:
        """Where the report lies: a path, or the address in an object store.

        Raises:
            StorageError: the study has not come to its end.
        """
        self._bytes(PAGE)
        return self._storage.path(PAGE)

    def shards(self) -> ShardSet:
        """The stored activations and deltas."""
        return open_shards(self.cfg.storage.root)

    def _repr_html_(self) -> str:
        """What the page's first screen says, as a notebook shows it."""
        from deltasae_ray.report.cards import summaries

        try:
            of_adapters, page = summaries(self._report()), self.page()
        except StorageError as e:
            return Markup("<p>{}</p>").format(str(e))
        cell = Markup("<td style='text-align:left'>{}</td>").format
        join, rows = Markup("").join, Markup("")
        for one in of_adapters:
            cells = [cell(Markup("<b>{}</b><br>{} {}").format(one.name, one.sign, one.label))]
            cells += [cell(f"{c.sign} {c.word} {c.number}".removesuffix(" –")) for c in one.cards]
            cells += [cell(Markup("{}<br>{}").format(one.plain.sentence, one.plain.next))]
            rows += Markup("<tr>{}</tr>").format(join(cells))
        heads = ["", *(card.question for one in of_adapters[:1] for card in one.cards), ""]
        titles = join(Markup("<th>{}</th>").format(head) for head in heads)
        return Markup("<table><tr>{}</tr>{}</table><p>Report: {}</p>").format(titles, rows, page)

    def _report(self) -> "ReportInputs":
        """What the page was made of."""
        from deltasae_ray.report.inputs import ReportInputs

        return ReportInputs.from_json(self._bytes(REPORT).decode())

    @property
    def _storage(self) -> Storage:
        return resolve_root(self.cfg.storage.root)

    def _read(self, name: str) -> "pd.DataFrame":
        import pandas as pd

        return pd.read_parquet(io.BytesIO(self._bytes(name)))

    def _bytes(self, name: str) -> bytes:
        storage = self._storage
        if not storage.exists(name):
            raise StorageError(f"{storage.path('')} has no {name} yet: call .run(), which continues a study")
        return storage.read_bytes(name)


class _Report(msgspec.Struct):
    verdicts: tuple[VerdictLines, ...]


def _configured(values: Mapping[str, Any]) -> StudyConfig:
    """The configuration of these options; what the command line would print is the error's text."""
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "study.yaml"
        file.write_text(yaml.safe_dump(dict(values)), encoding="utf-8")
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            try:
                return parse_words([f"config={file}"], "")
            except SystemExit:
                text = errors.getvalue().replace(f"config={file}: ", "").strip()
        raise ConfigError(text.removeprefix("error: "))
