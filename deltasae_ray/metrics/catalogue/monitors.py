"""Figures of whole adapters: what becomes of the user's own monitors (`monitors.parquet`), and claims."""

from deltasae_ray.metrics.catalogue.entry import BESIDE, DESCRIBES, UNBOUNDED, Metric

# fmt: off
_RANDOM = "the random adapter (diverge.controls=random_lora)"
_NONE = "0: nothing changed"
MONITORS = (
    Metric("monitor.{name}.auroc", "AUROC on the adapted model",
           "P(a positive's score > a negative's), labelled texts",
           null=".5: a coin", ceiling="a logistic regression trained on adapted activations, 5 folds",
           source="", no_kappa=BESIDE),
    Metric("monitor.{name}.auroc_drop", "fall of AUROC",
           "AUROC(base) - AUROC(adapted), paired over documents",
           null=_RANDOM, tail="greater", source="p: DeLong et al. 1988",
           no_ceiling="the AUROC of the retrained probe stands beside"),
    Metric("monitor.{name}.repaired_drop", "fall of AUROC after repair",
           "AUROC(base) - AUROC(adapted, mapped back); the map is a ridge regression of base on adapted "
           "activations of the training text, then of other documents of the monitor's own texts; no "
           "label is read",
           null="the fall without repair", no_ceiling=UNBOUNDED),
    Metric("monitor.{name}.recovered", "share of the lost AUROC that repair returns",
           "1 - repaired_drop / auroc_drop; where a fall is shown", null="0: nothing", ceiling="1: all of it",
           no_kappa=BESIDE),
    Metric("monitor.{name}.tpr_drop", "fall of true positives at 1 % false alarms",
           "each model by its own threshold; 100 negatives or more", null=_NONE, source="",
           no_ceiling=UNBOUNDED),
    Metric("monitor.{name}.threshold_drift", "drift of the threshold",
           "change of the threshold with 1 % false alarms, in standard deviations of the base's scores",
           null=_NONE, unit="spreads", no_ceiling=UNBOUNDED),
    Metric("monitor.{name}.shift", "shift of the scores, without labels",
           "mean(score_a - score_b) / std(score_b), evaluation documents", null=_RANDOM, unit="spreads",
           source="", no_ceiling=UNBOUNDED),
    Metric("monitor.{name}.staleness", "change of the scores, without labels",
           "sqrt(mean (score_a - score_b)²) / std(score_b), evaluation documents", null=_RANDOM,
           unit="spreads", no_ceiling=UNBOUNDED),
)
CLAIMS = (
    Metric("trigger.confirmed", "confirmed triggers",
           "claims of kind trigger that held on contexts which had no part in finding them; `claims.json`",
           unit="claims", no_null="each was tested by itself", no_ceiling=DESCRIBES),
)
# fmt: on
