"""The Ray that a study runs on: the one that is there, or one of its own; and whether the study fits it."""

import logging
import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from deltasae_ray.adapt.config import CPUS_PER_WORKER as TRAINING_CPUS
from deltasae_ray.errors import ConfigError, ResourceError
from deltasae_ray.fit.config import CPUS_PER_WORKER as FIT_CPUS
from deltasae_ray.fit.config import FitConfig
from deltasae_ray.logs import label
from deltasae_ray.runtime.autoscaler import possible_types
from deltasae_ray.runtime.config import GangConfig
from deltasae_ray.runtime.local import join, joins_cluster, start_local
from deltasae_ray.runtime.node_types import each_node
from deltasae_ray.runtime.nodes import autoscaling, one_machine
from deltasae_ray.runtime.placement import Actors, Node, never_in_each_others_way
from deltasae_ray.runtime.shared_root import check_root
from deltasae_ray.storage import Storage
from deltasae_ray.study.address import answering_address
from deltasae_ray.study.config import StudyConfig

TRIAL_CPUS = 0.25
"""What a Tune trial asks for beside the fit workers inside it."""
READ_TASK_CPUS = 0.25
"""Left over for Ray Data's and the fit room's own tasks."""
_SOCKET_BYTES = 107
"""What Linux takes as the path of a socket."""


def connect() -> None:
    """Joins the cluster of the Ray job or of `ray start`, or starts Ray on this machine; where only loopback
    reaches it.

    Raises:
        ConfigError, ResourceError: RAY_ADDRESS is no address, or nobody answers there.
    """
    import ray

    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        address, options = answering_address(), {"logging_level": logging.WARNING, "log_to_driver": False}
        if address != "local" and joins_cluster():
            join(address=address, **options)
        else:
            start_local(**options)
    label(run=ray.get_runtime_context().get_job_id())
    ray.data.DataContext.get_current().enable_progress_bars = False
    _keep_to_log_files()


def check_socket_paths() -> None:
    """Refuses a temporary folder whose name is too long for the sockets that a Ray of this machine makes
    below it.

    Raises:
        ConfigError: RAY_TMPDIR, or TMPDIR where that is unset, leaves no room; the longest that does is
            named.
    """
    import ray

    # Ray's own order; a cluster that runs already has its sockets
    word = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), None)
    if word is None or ray.is_initialized() or os.environ.get("RAY_ADDRESS", "local") not in ("", "local"):
        return
    folder = os.environ[word]
    below = f"/ray/session_2026-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store"
    room = _SOCKET_BYTES - len(below)
    if len(os.fsencode(folder.rstrip("/"))) > room:
        raise ConfigError(
            f"{word}={folder!r} has {len(os.fsencode(folder))} bytes, and sockets of Ray below it leave room"
            f" for {room}: set RAY_TMPDIR to a shorter folder on the same disk, or to a short link to it (ln"
            f" -s {folder} /tmp/r; RAY_TMPDIR=/tmp/r)"
        )


def join_to_read() -> bool:
    """Connects, for tasks that read the text before the plan is made; whether Ray is this machine alone,
    whose files they all find."""
    connect()
    return one_machine()


def _keep_to_log_files() -> None:
    """Ray Data and Tune tell every step of theirs on the terminal too, in the middle of the bars; there, only
    their warnings are of use."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # whose table of trials heeds no `verbose`
    for handler in logging.getLogger("ray.data").handlers:
        if handler.get_name() == "console":
            handler.setLevel(logging.WARNING)
            handler.addFilter(lambda record: not record.getMessage().startswith("Progress bars disabled"))


_LONGEST_NAME = 255
"""Bytes of one name in a path, on Linux and macOS."""


def resolve_root(root: str) -> Storage:
    """The storage root as every process will see it.

    Raises:
        ConfigError: a folder that cannot be made.
    """
    if "://" in root or Path(root).is_absolute():
        storage = Storage(root)
        if storage.is_local:
            _check_folder(root, Path(storage.path("")))
        return storage
    _check_folder(root, Path(root).absolute())
    return Storage(str(Path(root).absolute()))


def _check_folder(root: str, folder: Path) -> None:
    """Whether a local root is there or can be made, looked at without making it."""
    if long := [part for part in folder.parts if len(part.encode()) > _LONGEST_NAME]:
        raise ConfigError(
            f"storage.root={root!r} has a name of {len(long[0].encode())} bytes in it, and file systems take"
            f" {_LONGEST_NAME}: give a shorter one"
        )
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not there.is_dir():
        raise ConfigError(
            f"storage.root={root!r} cannot be a folder, since {there} is a file or a symlink to nothing: give"
            " another path"
        )
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(
            f"storage.root={root!r} cannot be written: no permission in {there}. Give a folder of your own"
        )


def check_cluster(cfg: StudyConfig, storage: Storage) -> None:
    """Compares what the study asks for with what the cluster has, before Ray would wait without a word.

    Raises:
        ResourceError: fewer CPUs or GPUs than the workers of one adapter, one gang with a read task, or the
            trials at once with their workers and a read task need; or no node that is large enough for one of
            them, also in memory where a gang asks for it. Where nodes come on demand, those count that may
            come.
        StorageError: a local root while there is more than one node, or nodes come on demand, and not all of
            them see it.
    """
    nodes, has = _listed()
    for _ in range(60):  # on a busy machine, a node that has just come up is not listed at once
        if nodes and has:
            break
        time.sleep(0.5)
        nodes, has = _listed()
    check_root(storage, len(nodes))
    cpus, gpus = has.get("CPU", 0), has.get("GPU", 0)
    kinds = possible_types()
    if kinds is None:
        return  # nodes come on demand, and nobody says of what kind
    possible = each_node(kinds)
    if autoscaling() or len(possible) > len(nodes):
        check_nodes(cfg, possible, at_once=1)  # trials wait for each other's nodes
        return
    fit = cfg.fit
    workers = fit.workers * fit.at_once
    trained_by = 0 if cfg.adapters else cfg.gangs.ranks
    needs = {
        "adapt": (
            trained_by * TRAINING_CPUS,
            trained_by * cfg.gangs.gpus_per_rank,
            "gangs.ranks, gangs.gpus_per_gang",
        ),
        "harvest": (
            cfg.gangs.cpus_per_gang + READ_TASK_CPUS,
            cfg.gangs.gpus_per_gang,
            "gangs.cpus_per_gang, gangs.gpus_per_gang",
        ),
        "fit": (
            fit.at_once * TRIAL_CPUS + workers * FIT_CPUS + READ_TASK_CPUS,
            workers * fit.gpus_per_worker,
            "fit.workers, fit.gpus_per_worker, fit.max_concurrent_trials",
        ),
    }
    for stage, (cpu, gpu, words) in needs.items():
        if cpu > cpus or gpu > gpus:
            raise ResourceError(
                f"the {stage} stage needs {cpu:g} CPUs and {gpu:g} GPUs at once; this cluster has {cpus:g}"
                f" and {gpus:g}: lower {words}, or add nodes; Ray would wait for ever"
            )
    check_nodes(cfg, nodes)


def _listed() -> tuple[list[Node], Node]:
    """The resources of each node that is up, and of the cluster, as Ray lists them now."""
    import ray

    return [n["Resources"] for n in ray.nodes() if n["Alive"] and n["Resources"]], ray.cluster_resources()


def check_nodes(cfg: StudyConfig, nodes: Sequence[Node], *, at_once: int | None = None) -> None:
    """Raises ResourceError where a stage's actors, each of which stands on one node, do not fit the nodes
    though all together would.

    Args:
        nodes: that are there, and that may come where they do so on demand.
        at_once: trials that must have room together; `fit.max_concurrent_trials` where it is not said.
    """
    fit, gangs = cfg.fit, cfg.gangs
    workers = fit.workers * (fit.at_once if at_once is None else at_once)
    stages = {
        "gangs.ranks or gangs.gpus_per_gang": Actors(
            0 if cfg.adapters else gangs.ranks, TRAINING_CPUS, gangs.gpus_per_rank
        ),
        "gangs.cpus_per_gang, gangs.gpus_per_gang or gangs.memory_gb": _gangs(gangs, 1),
        "fit.gpus_per_worker": Actors(workers, FIT_CPUS, fit.gpus_per_worker),
    }
    for words, actors in stages.items():
        if not actors.fit_on(nodes):
            kinds = Counter(_describe(node, memory=actors.memory > 0) for node in nodes)
            there = ", ".join(
                ", ".join([kind] * count) if count <= 2 else f"{count} of {kind}"
                for kind, count in kinds.items()
            )
            raise ResourceError(
                f"{actors.count} times {_describe(actors.asked, memory=actors.memory > 0)} do not fit the"
                f" nodes of this cluster ({there}), and each stands on one node: lower {words}, or take"
                " larger nodes; Ray would wait for ever"
            )


def _gangs(cfg: GangConfig, count: int) -> Actors:
    return Actors(count, cfg.cpus_per_gang, cfg.gpus_per_gang, cfg.memory_gb * 1e9)


def _describe(of: Node, *, memory: bool) -> str:
    text = f"{of.get('CPU', 0):g} CPUs and {of.get('GPU', 0):g} GPUs"
    return f"{text} with {of.get('memory', 0) / 1e9:.1f} GB of memory" if memory else text


def concurrent_trials(fit: FitConfig, trials: int) -> int:
    """What `fit.max_concurrent_trials=0` stands for: as many of `trials` as the nodes hold, at least one; all
    of them where nodes come on demand.
    """
    import ray

    return (
        trials
        if autoscaling()
        else trials_on([n["Resources"] for n in ray.nodes() if n["Alive"]], fit, trials)
    )


def trials_on(nodes: Sequence[Node], fit: FitConfig, trials: int) -> int:
    """How many of `trials`, at least one, have room at once with their workers, each on one node, and a task
    that reads beside them."""
    fitting, too_many = 1, trials + 1
    while too_many - fitting > 1:
        count = (fitting + too_many) // 2
        trial, worker = Actors(count, TRIAL_CPUS), Actors(count * fit.workers, FIT_CPUS, fit.gpus_per_worker)
        if _beside_a_reader(nodes, trial, worker):
            fitting = count
        else:
            too_many = count
    return fitting


def holds_harvest_and_fit(cfg: StudyConfig) -> bool:
    """Whether all gangs and fit workers of a stream have room on the nodes that are there now: then neither
    waits for the other's."""
    import ray

    return side_by_side([n["Resources"] for n in ray.nodes() if n["Alive"]], cfg.gangs, cfg.fit)


def side_by_side(nodes: Sequence[Node], gangs: GangConfig, fit: FitConfig) -> bool:
    """Whether gangs and fit workers stand on `nodes` with a task that reads beside them: on whichever node it
    runs first, or with what all leave over."""
    gang = _gangs(gangs, gangs.gangs)
    worker = Actors(fit.workers, FIT_CPUS, fit.gpus_per_worker)
    return _beside_a_reader(nodes, gang, worker)


def _beside_a_reader(nodes: Sequence[Node], one: Actors, other: Actors) -> bool:
    """Whether both kinds have room wherever Ray puts them, and a task that reads has it before or after
    them."""
    cpus = one.count * one.cpus + other.count * other.cpus + READ_TASK_CPUS
    if cpus > sum(node.get("CPU", 0.0) for node in nodes):
        return False
    able = {
        tuple(n.get(name, 0.0) for name in one.asked): i
        for i, n in enumerate(nodes)
        if n.get("CPU", 0.0) >= READ_TASK_CPUS
    }
    reading = [
        [{**n, "CPU": n.get("CPU", 0.0) - READ_TASK_CPUS * (i == at)} for i, n in enumerate(nodes)]
        for at in able.values()
    ]
    return bool(able) and all(never_in_each_others_way(left, one, other) for left in reading)
