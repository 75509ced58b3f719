"""Which losses count against a gang, and which errors are losses."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch

from deltasae_ray.errors import PrecisionError
from deltasae_ray.runtime.failure import Failure
from deltasae_ray.runtime.losses import Lives
from deltasae_ray.runtime.rendezvous import broken_collective


def test_a_gang_whose_nodes_go_has_no_faults_and_one_that_dies_on_a_living_node_has() -> None:
    lives = Lives().next("a", {"a", "b"})
    assert lives == Lives("a", faults=0, lost_nodes=0)
    for node in ("b", "c", "d"):
        lives = lives.next(node, {node, "head"})
    assert lives == Lives("d", faults=0, lost_nodes=3)
    assert lives.next("d", {"d"}).next("e", {"d", "e"}) == Lives("e", faults=2, lost_nodes=3)


@pytest.fixture(params=["own", "of the group"])
def timed_out(request: pytest.FixtureRequest) -> Exception:
    """What gloo raises where a peer does not come to a collective, by the wait's own limit or the group's."""
    from torch.distributed import HashStore, ProcessGroupGloo

    store, timeout = HashStore(), timedelta(seconds=1)
    with ThreadPoolExecutor(2) as pool:
        group, _silent = pool.map(lambda rank: ProcessGroupGloo(store, rank, 2, timeout), range(2))
        with pytest.raises(Exception, match=".") as raised:  # noqa: PT011 - its type is what is asked for
            work = group.allreduce([torch.ones(1)])
            work.wait(timedelta(seconds=0.5)) if request.param == "own" else work.wait()
    return raised.value


def test_a_collective_that_a_peer_does_not_come_to_is_a_loss(timed_out: Exception) -> None:
    assert broken_collective(timed_out), f"{type(timed_out)}: {timed_out}"
    around = RuntimeError("the pass failed")
    around.__cause__ = timed_out
    assert broken_collective(around) and Failure.of(around).lost


@pytest.mark.parametrize(
    "error",
    [
        KeyError("gloo"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        torch.OutOfMemoryError("CUDA out of memory"),
        PrecisionError("a value is NaN"),
    ],
)
def test_other_errors_are_bugs_or_raised_on_purpose(error: Exception) -> None:
    assert not broken_collective(error) and not Failure.of(error).lost
