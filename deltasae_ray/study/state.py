"""What the stages of one run have made or found."""

from dataclasses import dataclass, field

from deltasae_ray.fit.points import FitPoint
from deltasae_ray.fit.run import FittedDictionary
from deltasae_ray.harvest.run import Harvest
from deltasae_ray.models.adapters import AdapterRef
from deltasae_ray.sae.identity import Trial


@dataclass
class StudyState:
    """Filled stage by stage; every later stage reads what the earlier ones left."""

    by_tune: bool
    """Fit the grid as Tune trials (the sweep), or in one pass (the fit job)."""
    adapters: tuple[AdapterRef, ...] = ()
    harvest: Harvest | None = None
    controls: dict[FitPoint, FittedDictionary] = field(default_factory=dict)
    """Reference, base control and the other controls' dictionaries."""
    lost: dict[FitPoint, str] = field(default_factory=dict)
    """Control of an adapter that could not be fitted, as its own deltas may be → its error. Without reference
    nothing can be said."""
    grid: dict[Trial, list[FittedDictionary]] = field(default_factory=dict)
    failed: dict[Trial, str] = field(default_factory=dict)
    """Trial that failed after its retries → its error."""
