"""Errors a user can act on. Each is also a standard type, and picklable, since Ray carries them between
processes."""

from deltasae_ray.redaction import redact


class DeltaSaeError(Exception):
    """Base of every error this package raises on purpose; no text of one holds a secret."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(redact(a) if isinstance(a, str) else a for a in args))


class ConfigError(DeltaSaeError, ValueError):
    """A configuration value is impossible, or two values contradict each other."""


class CorpusError(DeltaSaeError, ValueError):
    """The text is missing, empty or too short for the splits that were asked for."""


class ModelError(DeltaSaeError, ValueError):
    """The base model cannot be loaded, or is of an architecture whose blocks are not found."""


class HookpointError(DeltaSaeError, ValueError):
    """A hookpoint that the model, the shards or a dictionary does not have."""


class AdapterError(DeltaSaeError, ValueError):
    """An adapter that does not fit the model, changes nothing, or cannot be turned off exactly."""


class PrecisionError(DeltaSaeError, ArithmeticError):
    """Deltas too close to the noise floor, or NaN and infinity where numbers belong."""


class ShardError(DeltaSaeError, OSError):
    """A shard or manifest that is missing, truncated or altered."""


class StorageError(DeltaSaeError, OSError):
    """The storage root cannot hold what the plan needs, or cannot be reached by every node."""


class LayoutError(DeltaSaeError, OSError):
    """A storage root whose files are arranged as another version arranges them."""


class LeaseError(DeltaSaeError, RuntimeError):
    """Another driver works on the storage root, or has taken it over."""


class ResourceError(DeltaSaeError, RuntimeError):
    """The cluster is too small for what was asked; Ray would wait without a word."""


class WorkerError(DeltaSaeError, RuntimeError):
    """A unit of work failed in a way that nobody foresaw; carries the type and the traceback of what was
    raised."""


class DictionaryError(DeltaSaeError, ValueError):
    """A sparse autoencoder that is malformed, was made for another model or hookpoint, or cannot be
    fitted."""


class MonitorError(DeltaSaeError, ValueError):
    """A monitor that is malformed, or was made for another model or for a hookpoint that the study does not
    read."""


class GeometryError(DeltaSaeError, ValueError):
    """A comparison that has no meaning, such as the angles between subspaces that span everything."""
