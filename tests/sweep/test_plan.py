"""What a study's stages took stays known when a later run finds them done."""

from pathlib import Path

from deltasae_ray.storage import Storage
from deltasae_ray.sweep.plan import Clock


def test_a_run_that_finds_a_stage_done_does_not_hide_what_it_cost(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    assert Clock({"harvest": 200.0, "fit": 90.0}).longest(storage) == {"harvest": 200.0, "fit": 90.0}
    assert Clock({"harvest": 0.3, "fit": 120.0, "diverge": 60.0}).longest(storage) == {"harvest": 200.0, "fit": 120.0, "diverge": 60.0}
