"""A section for an adapter's model card on the Hugging Face hub: figures in the model-index form, and the
verdict's words."""

from huggingface_hub import EvalResult, ModelCardData

from deltasae_ray.gate.decision import OUTCOMES, Decision
from deltasae_ray.gate.finished import Finished, ReportedVerdict
from deltasae_ray.gate.grammar import comparisons
from deltasae_ray.metrics.catalogue import metric


def model_card(adapter: str, decision: Decision, finished: Finished) -> str:
    """YAML metadata and a section in Markdown."""
    base = finished.report.model
    data = ModelCardData(
        base_model=base if "/" in base and " " not in base and not base.startswith("/") else None,
        model_name=adapter,
        tags=["deltasae-ray"],
        eval_results=_results(adapter, decision, finished) or None,
    )
    verdict = finished.report.verdict_of(adapter)
    parts = [f"---\n{data.to_yaml()}\n---", "## What this adapter changes in the model", _describe(verdict)]
    return "\n\n".join([*parts, *_policy(adapter, decision), _limits(finished)]) + "\n"


def _results(adapter: str, decision: Decision, finished: Finished) -> list[EvalResult]:
    """One per figure that the policy names and place where it is defined."""
    names = dict.fromkeys(c.figure.name for rule in decision.policy.rules for c in comparisons(rule.when))
    texts = ", ".join(corpus.name for corpus in finished.report.corpora) or "evaluation documents"
    results = []
    for (name, layer), figures in sorted(finished.figures.items(), key=lambda p: (p[0][0], p[0][1] or -1)):
        for figure in names if name == adapter else ():
            measure = figures.get(figure)
            if measure is None or measure.value is None:
                continue
            at = "" if layer is None else f", layer {layer}"
            results.append(
                EvalResult(
                    task_type="other", task_name="What the adapter added to the model",
                    dataset_type="evaluation-documents", dataset_name=texts,
                    metric_type=figure, metric_name=f"{metric(figure).title}{at}", metric_value=measure.value,
                    metric_args={"interval": list(measure.ci) if measure.ci else None, "null": measure.null},
                )
            )  # fmt: skip
    return results


def _describe(verdict: ReportedVerdict | None) -> str:
    if verdict is None:
        return "The study says nothing of this adapter."
    answers = [f"- **{a.question}** {'. '.join(a.sentences)}." for a in verdict.answers]
    return "\n".join([f"**{verdict.head}**", "", *answers])


def _policy(adapter: str, decision: Decision) -> list[str]:
    lines = [f"Policy: this adapter {_outcome(decision, adapter)}."]
    for rule, rate in zip(decision.policy.rules, decision.rates, strict=True):
        outcomes = {f.outcome for f in decision.findings if (f.adapter, f.rule) == (adapter, rule.name)}
        if not outcomes:
            continue
        state = (
            "fires" if "fired" in outcomes else "undecided" if "undecided" in outcomes else "does not fire"
        )
        lines.append(f"- `{rule.name}` ({rule.when}): {state}; {rate}.")
    return ["\n".join(lines)]


def _outcome(decision: Decision, adapter: str) -> str:
    return {"fired": "breaks a rule", "undecided": OUTCOMES["undecided"], "clear": "breaks no rule"}[
        decision.outcome_of(adapter)
    ]


def _limits(finished: Finished) -> str:
    layers = ", ".join(map(str, finished.report.layers))
    return (
        f"Measured on {finished.report.model} at layers {layers}, held against the"
        f" {finished.report.reference}. A rule that does not fire is no proof that the adapter is harmless."
    )
