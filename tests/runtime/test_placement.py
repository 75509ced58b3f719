"""Room for actors of two kinds on a cluster's nodes, and what a study makes of it; no Ray here."""

from dataclasses import replace
from itertools import product

import pytest

from deltasae_ray.errors import ResourceError
from deltasae_ray.fit.config import FitConfig
from deltasae_ray.runtime.config import GangConfig
from deltasae_ray.runtime.placement import Actors, Node, never_in_each_others_way
from deltasae_ray.study.cluster_check import check_nodes, side_by_side, trials_on
from deltasae_ray.study.config import StudyConfig


def node(cpus: float, gpus: float = 0) -> Node:
    return {"CPU": cpus, "memory": 1e9} | ({"GPU": gpus} if gpus else {})


def test_actors_fit_only_where_single_nodes_hold_them() -> None:
    assert Actors(2, 1.5).fit_on([node(2), node(2)])
    assert not Actors(2, 1.5).fit_on([node(3.5 / 3), node(3.5 / 3), node(3.5 / 3)])
    assert Actors(8, 1, 1).fit_on([node(64, 8)]) and not Actors(1, 1, 8).fit_on([node(64, 4), node(64, 4)])
    assert Actors(3, 0.1).fit_on([node(0.3)]), "thirds of 0.3 are rounded"


def test_two_kinds_have_room_only_where_no_order_of_their_placement_takes_it() -> None:
    assert never_in_each_others_way([node(2)], Actors(1, 1), Actors(2, 0.5))
    assert not never_in_each_others_way([node(2)], Actors(2, 1), Actors(1, 0.5))
    # There is room for all on two nodes if both gangs share one, and Ray may as well place them apart.
    assert not never_in_each_others_way([node(2), node(2)], Actors(2, 1), Actors(1, 2))
    assert never_in_each_others_way([node(2), node(2), node(2)], Actors(2, 1), Actors(1, 2))
    assert never_in_each_others_way([node(8, 8), node(8)], Actors(1, 1, 8), Actors(2, 1)), (
        "who asks for no GPU leaves them alone"
    )
    assert not never_in_each_others_way([node(8, 8)], Actors(1, 1, 8), Actors(1, 1, 1))


@pytest.mark.parametrize("nodes", [(3, 2), (2, 2, 1), (4,), (1, 1, 1)])
def test_the_least_room_is_that_of_the_worst_of_all_placements(nodes: tuple[int, ...]) -> None:
    for one, other in product(
        (Actors(1, 1), Actors(2, 1), Actors(1, 2)), (Actors(1, 1), Actors(1, 2), Actors(2, 1.5))
    ):
        expected = all(
            sum(
                max(0, int((cpus - taken * a.cpus) / b.cpus))
                for cpus, taken in zip(nodes, placed, strict=True)
            )
            >= b.count
            for a, b in ((one, other), (other, one))
            for placed in product(range(a.count + 1), repeat=len(nodes))
            if sum(placed) == a.count
            and all(taken * a.cpus <= cpus for cpus, taken in zip(nodes, placed, strict=True))
        ) and all(sum(int(cpus / a.cpus) for cpus in nodes) >= a.count for a in (one, other))
        assert never_in_each_others_way([node(cpus) for cpus in nodes], one, other) == expected, (one, other)


def test_a_stream_runs_side_by_side_only_where_no_gang_or_worker_can_be_shut_out() -> None:
    gangs, fit = GangConfig(), FitConfig()
    assert side_by_side([node(2)], gangs, fit)
    assert not side_by_side([node(1.5)], gangs, fit), "nothing is left for the task that reads"
    assert not side_by_side([], gangs, fit) and not side_by_side([node(0)], gangs, fit)
    # Enough together, and no node for the gang.
    assert not side_by_side([node(1)] * 8, replace(gangs, cpus_per_gang=2), fit)
    assert not side_by_side([node(0.4)] * 8, replace(gangs, cpus_per_gang=0.4), fit)
    assert side_by_side([node(1)] * 8, gangs, fit) and side_by_side(
        [node(8, 4), node(8)], GangConfig(ranks=4, gpus_per_gang=4), fit
    )
    assert not side_by_side(
        [node(8, 4)], GangConfig(ranks=4, gpus_per_gang=4), replace(fit, gpus_per_worker=0.5)
    )
    assert side_by_side([node(4)], GangConfig(memory_gb=1), fit) and not side_by_side(
        [node(4)], GangConfig(gangs=2, memory_gb=0.6), fit
    )


def test_trials_at_once_are_those_that_fit_node_by_node() -> None:
    fit = FitConfig()
    assert trials_on([node(2)], fit, 12) == 2 and trials_on([node(2)], fit, 1) == 1
    assert trials_on([node(4)], fit, 12) == 5, "5 × 0.75 and a reading task's 0.25 of 4"
    # 3 CPUs are enough for three. But a node of 0.75 holds one worker of 0.5, and none where Ray has put two
    # trials of 0.25.
    assert trials_on([node(0.75)] * 4, fit, 12) < 3
    assert trials_on([node(64, 4), node(64, 4)], FitConfig(gpus_per_worker=1), 100) == 8
    assert trials_on([node(64, 1)] * 8, FitConfig(workers=2, gpus_per_worker=1), 100) == 4
    assert trials_on([node(64, 1.5)] * 8, FitConfig(gpus_per_worker=1), 100) == 8, (
        "half a GPU here and half there is none"
    )
    assert trials_on([node(0.1)], fit, 12) == 1, "what a single trial needs is checked elsewhere"


@pytest.mark.parametrize(
    ("cfg", "said"),
    [
        (StudyConfig(gangs=GangConfig(cpus_per_gang=6)), "1 times 6 CPUs .*gangs.cpus_per_gang"),
        (StudyConfig(fit=FitConfig(gpus_per_worker=5)), "fit.gpus_per_worker"),
        (
            StudyConfig(gangs=GangConfig(ranks=8, gpus_per_gang=8)),
            "8 GPUs .*4 CPUs and 4 GPUs, 4 CPUs and 4 GPUs.*gangs.gpus_per_gang",
        ),
        (
            StudyConfig(gangs=GangConfig(memory_gb=1.5)),
            "1.5 GB of memory do not fit .*1.0 GB of memory, .*1.0 GB of memory.*gangs.memory_gb",
        ),
    ],
)
def test_an_actor_that_no_single_node_holds_is_an_error_and_no_endless_wait(
    cfg: StudyConfig, said: str
) -> None:
    check_nodes(StudyConfig(), [node(4, 4), node(4, 4)])
    with pytest.raises(ResourceError, match=said):
        check_nodes(replace(cfg, adapters=("given",)), [node(4, 4), node(4, 4)])
