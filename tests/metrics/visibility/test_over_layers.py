"""Labels over layers: at most one of twenty wrong, and which layer leads."""

import numpy as np
import pytest
from scipy import stats

from deltasae_ray.metrics.measure import Measure
from deltasae_ray.metrics.visibility.answer import Visibility
from deltasae_ray.metrics.visibility.decision import Label, label_of
from deltasae_ray.metrics.visibility.over_layers import over_layers
from deltasae_ray.metrics.visibility.resampled import counted, share_interval


def layer(named: int, n: int, unsure: int = 0) -> Visibility:
    draws = counted(named, named + unsure, n)
    interval = share_interval(draws)
    share = Measure(named / n, null=0.0, ceiling=1.0, ci=interval, n=n)
    return Visibility(label_of(interval, n), share, (0.0, 1.0), (), (), draws=draws)


@pytest.mark.parametrize("n", [24, 64, 200])
@pytest.mark.parametrize(("f", "wrong"), [(0.5, "NOT VISIBLE"), (0.1, "VISIBLE"), (0.05, "PARTLY VISIBLE")])
def test_some_of_twenty_layers_is_labelled_wrong_in_at_most_a_twentieth(n: int, f: float, wrong: str) -> None:
    """f lies on the border of the label, where errors are likeliest; probabilities are exact."""
    counts = np.arange(20 * -(-(n + 1) // 20)).reshape(-1, 20)  # twenty layers at a time, with any count
    labels = [over_layers({str(x): layer(min(x, n), n) for x in some}).layers for some in counts.tolist()]
    each = np.array([x.label == wrong for some in labels for x in some.values()])[: n + 1]
    one = float(stats.binom.pmf(np.arange(n + 1), n, f) @ each)
    assert 1 - (1 - one) ** 20 <= 0.05


def test_twenty_layers_by_themselves_would_be_labelled_wrong_too_often() -> None:
    each = np.array([layer(x, 64).label == "NOT VISIBLE" for x in range(65)])
    one = float(stats.binom.pmf(np.arange(65), 64, 0.5) @ each)
    assert 1 - (1 - one) ** 20 > 0.25


def test_a_layer_that_is_not_visible_leads_then_one_that_is_not_known() -> None:
    found = over_layers({"6": layer(0, 200), "12": layer(60, 64), "18": layer(2, 12)})
    assert found.label == "NOT VISIBLE" and found.leading == "12"
    rest = over_layers({"6": layer(0, 200), "18": layer(2, 12), "9": layer(30, 100)})
    assert rest.label == "INCONCLUSIVE" and rest.leading == "18"
    assert over_layers({"6": layer(0, 200)}).label == "VISIBLE"


def test_more_layers_ask_for_more_and_say_so_while_a_counted_change_stays() -> None:
    alone, many = layer(0, 24), over_layers({str(i): layer(0, 24) for i in range(20)})
    assert alone.label == "VISIBLE" and many.label == "INCONCLUSIVE"
    assert "over 20 layers at once" in many.layers["0"].reasons[-1]
    assert many.layers["0"].share.value == 0.0
    label: Label = "VISIBLE"
    counted = Visibility(label, Measure(0.0, ci=(0.0, 0.0), n=4), (1.0, 1.0), (), (), judged_on="directions")
    assert over_layers({"a": counted, **{str(i): layer(0, 24) for i in range(20)}}).layers["a"] == counted
