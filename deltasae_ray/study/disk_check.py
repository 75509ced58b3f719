"""What a study writes below its root, and whether a local root has room for what is still missing."""

from deltasae_ray.adapt.run import trained, trainings
from deltasae_ray.errors import StorageError
from deltasae_ray.fit.run import MANIFEST
from deltasae_ray.harvest.key import harvest_key
from deltasae_ray.harvest.random_draws import random_names
from deltasae_ray.hookpoints import Hookpoint, at_sites
from deltasae_ray.models.adapters import AdapterRef
from deltasae_ray.sae.identity import BASE
from deltasae_ray.shards.manifest import Manifest
from deltasae_ray.shards.records import read_sources
from deltasae_ray.study.controls import control_points
from deltasae_ray.study.grid import grid_points, trials
from deltasae_ray.study.inputs import Study
from deltasae_ray.study.plan import Plan
from deltasae_ray.study.plan_costs import dictionary_bytes


def check_disk(study: Study, plan: Plan) -> None:
    """Raises StorageError where what the plan has still to write would not fit on a local root with a tenth
    to spare."""
    free = study.storage.free_bytes()
    if free is None:
        return
    shards = max(0, plan.shard_bytes - shards_there(study)) if "harvest" in plan.seconds else 0
    dictionaries = max(0, plan.dictionary_bytes - dictionaries_there(study)) if "fit" in plan.seconds else 0
    if (shards + dictionaries) * 1.1 > free:
        raise StorageError(
            f"the plan has still to write {shards / 1e9:.2f} GB of shards and {dictionaries / 1e9:.2f} GB of"
            f" dictionaries below {study.storage.root}, where {free / 1e9:.2f} GB are free: free space,"
            " choose another storage.root, or lower corpus.fit_tokens, corpus.eval_tokens, the number of"
            " layers or fit.d_sae"
        )


def shards_there(study: Study) -> int:
    """Bytes of the shards that this study will find: of its text, model, sources and hookpoints, and of no
    other study below its root."""
    ranks = {BASE: 0} | {ref.digest: ref.rank for ref in _known(study)}
    sites, d_model = study.cfg.harvest.sites, study.model.d_model
    wanted = set(at_sites(study.hookpoints, sites))

    def there(source: str, hookpoints: str, size: int) -> int:
        hooks = [Hookpoint.parse(h) for h in hookpoints.split(",")]
        widths = {h: ranks[source] if h.site == "lora" else d_model for h in hooks}
        kept = sum(
            w
            for h, w in widths.items()
            if h in wanted or h.site == "lora" and "lora" in sites and h.layer in study.layers
        )
        return size * kept // max(1, sum(widths.values()))

    table = Manifest.load(study.storage, _harvest(study)).select(ranks)
    groups = table.group_by(["source", "hookpoints"]).aggregate([("bytes", "sum")]).to_pylist()
    return sum(there(group["source"], group["hookpoints"], group["bytes_sum"]) for group in groups)


def dictionaries_there(study: Study) -> int:
    """Bytes of the dictionaries that this study will find. Those with settings from a search are not known
    here."""
    fit, layers, known = study.cfg.fit, study.layers, _known(study)
    sources = {BASE: BASE} | {ref.name: ref.digest for ref in known}
    points = control_points(
        layers,
        fit,
        known,
        study.cfg.diverge.chosen,
        toy_reference=study.cfg.reference.is_toy,
        siblings=not study.has_siblings,
    )
    points += [p for trial in trials(known, fit) for p in grid_points(trial, layers, fit.seeds)]
    done = [p for p in points if study.storage.exists(f"{p.key(_harvest(study), sources, fit)}/{MANIFEST}")]
    return sum(dictionary_bytes(study.cfg, study.model.d_model, p.d_sae) for p in done)


def _harvest(study: Study) -> str:
    return harvest_key(study.kept, study.model, study.cfg.harvest.precision)


def _known(study: Study) -> list[AdapterRef]:
    """The adapters of this study that are there already, the random ones included."""
    known = list(study.given)
    if not study.given:
        known = [
            ref
            for t in trainings(study.model, study.corpus, study.cfg.adapt)
            if (ref := trained(study.storage, t))
        ]
    names = random_names([a.rank for a in known]) if "random_lora" in study.cfg.diverge.chosen else []
    random = {s.name: s for s in read_sources(study.storage, _harvest(study)) if s.kind == "random"}
    return known + [
        AdapterRef(s.name, "", s.digest, s.rank or 0, s.alpha or 0.0, kind="random")
        for name in names
        if (s := random.get(name))
    ]
