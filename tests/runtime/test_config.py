"""What a gang may ask for."""

import pytest

from deltasae_ray.errors import ConfigError
from deltasae_ray.models.config import ModelConfig
from deltasae_ray.runtime.config import GangConfig, check_sharding


def test_ranks_and_sharding_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="gangs.ranks=2 needs model.sharding=zero3"):
        check_sharding(GangConfig(ranks=2), ModelConfig())
    with pytest.raises(
        ConfigError, match=r"gangs.ranks=1: set gangs.ranks=2 or more .*or model.sharding=none"
    ):
        check_sharding(GangConfig(), ModelConfig(sharding="zero3"))
    check_sharding(GangConfig(ranks=2), ModelConfig(sharding="zero3"))
    check_sharding(GangConfig(), ModelConfig())


def test_memory_below_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="gangs.memory_gb=-1 must not be negative"):
        GangConfig(memory_gb=-1)
