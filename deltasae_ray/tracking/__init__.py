"""MLflow, and nothing else of the package imports it."""

from deltasae_ray.tracking.points import LeafPoint, TrackingConfig, TrialPoint
from deltasae_ray.tracking.run_log import RunLog
from deltasae_ray.tracking.store import reach
from deltasae_ray.tracking.tracker import Tracker

__all__ = ["LeafPoint", "RunLog", "Tracker", "TrackingConfig", "TrialPoint", "reach"]
