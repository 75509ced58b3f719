"""Damage of any kind to shards, commit records and manifests: typed errors only, nothing outside touched,
nothing sound lost."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltasae_ray.errors import DeltaSaeError
from deltasae_ray.shards import open_shards
from deltasae_ray.shards.integrity import repair
from deltasae_ray.shards.manifest import Manifest
from deltasae_ray.storage import Storage
from tests.fuzz import LONG, SHORT
from tests.shards.made import HOOKS, KEY, SOURCES, make_harvest

DIGESTS = [source.digest for source in SOURCES]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-(2**70),
        2**70) | st.floats() | st.text(max_size=5)
    | st.sampled_from(["../../../victim", "..", "", "base", "blocks.2.hook_resid_post", "\ud800", 10**400,
        2**53, "harvest.json"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["file", "unit", "lora",
        "ranks", "x"]), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
CUTS = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 40), st.binary(max_size=40)), min_size=1, max_size=4
)
"""Where (as a share of the length), how many bytes go, and what comes in their place."""


class World:
    """A small harvest, half of it compacted, beside a file that nobody may touch; what a case does to it is
    undone before the next."""

    def __init__(self, folder: Path) -> None:
        self.storage = Storage(str(folder / "root"))
        units = make_harvest(self.storage, 2)
        Manifest.compact(self.storage, KEY)
        self.units = [*units, *make_harvest(Storage(str(folder / "other")), 3)[2:]]
        for name in (other := Storage(str(folder / "other"))).list(KEY):
            if self.units[2].name in name:
                self.storage.write_bytes(name, other.read_bytes(name))
        self.storage.write_bytes(f"{KEY}/units.json", other.read_bytes(f"{KEY}/units.json"))
        self.storage.write_json("study.json", {"harvest": KEY, "sources": DIGESTS})
        self.victim = folder / "victim"
        self.victim.write_text("mine")
        self.sound = {k: self.storage.read_bytes(k) for k in self.storage.list("")}
        self.shards = [k for k in self.sound if "/sources/" in k and k.endswith(".parquet")]
        self.records = [k for k in self.sound if k not in self.shards]
        self.rows = {row.file: row for row in Manifest.load(self.storage, KEY).rows}

    def restored(self) -> None:
        for key, data in self.sound.items():
            path = Path(self.storage.root) / key
            if not path.exists() or path.read_bytes() != data:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        for path in Path(self.storage.root).rglob("*"):
            if path.is_file() and path.relative_to(self.storage.root).as_posix() not in self.sound:
                path.unlink()

    def put(self, key: str, data: bytes) -> None:
        (Path(self.storage.root) / key).write_bytes(data)

    def used(self, may_go: set[str]) -> None:
        """Everything that a study does with a harvest; only DeltaSaeError may be raised, and of the shards
        only `may_go` may be deleted."""
        names, wanted = [u.name for u in self.units], dict.fromkeys(DIGESTS, HOOKS)
        with suppress(DeltaSaeError):
            shards = open_shards(self.storage.root)
            for step in (lambda: shards.read(2, "r4"), lambda: shards.tokens(), lambda: shards.verify()):
                with suppress(DeltaSaeError):
                    step()
        for step in (
            lambda: repair(self.storage, KEY),
            lambda: repair(self.storage, KEY, hashes=True),
            lambda: Manifest.compact(self.storage, KEY).missing(names, wanted),
        ):
            with suppress(DeltaSaeError):
                step()
        assert self.victim.read_text() == "mine"
        gone = {k for k in self.shards if not (Path(self.storage.root) / k).exists()}
        assert gone <= may_go, f"sound shards were deleted: {gone - may_go}"
        kept = [k for k in self.shards if k not in may_go]
        assert all((Path(self.storage.root) / k).read_bytes() == self.sound[k] for k in kept)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("fuzz"))


def cut(data: bytes, cuts: list[tuple[float, int, bytes]]) -> bytes:
    for share, count, new in cuts:
        at = int(share * len(data))
        data = data[:at] + new + data[at + count :]
    return data


def a_damaged_shard(world: World, which: int, cuts: list, told: bool) -> None:
    """`told`: its row says the new size and hash, as if the damage came before them."""
    world.restored()
    key = world.shards[which % len(world.shards)]
    data = cut(world.sound[key], cuts)
    world.put(key, data)
    if told:
        row = world.rows[key.removeprefix(f"{KEY}/")].to_json() | {
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        world.put(f"{KEY}/rows/{row['unit']}-0.json", json.dumps([row]).encode())
    world.used(may_go={key})


def places(value: Any, at: tuple = ()) -> list[tuple]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for name, below in inner for place in places(below, (*at, name)))]


def changed(value: Any, place: tuple, new: Any) -> Any:
    if not place:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[place[0]] = changed(value[place[0]], place[1:], new)
    return copy


def of_rows(world: World, data: bytes) -> set[str]:
    """The files that rows in a record are of."""
    return {f"{KEY}/{file}" for file in world.rows if file.encode() in data}


def a_changed_record(world: World, which: int, where: int, new: Any) -> None:
    """One value anywhere in a record is another one."""
    world.restored()
    texts = [key for key in world.records if key.endswith(".json")]
    value = json.loads(world.sound[key := texts[which % len(texts)]])
    at = places(value)
    world.put(key, json.dumps(changed(value, at[where % len(at)], new)).encode())
    world.used(may_go=of_rows(world, world.sound[key]))


def a_cut_record(world: World, which: int, cuts: list) -> None:
    world.restored()
    key = world.records[which % len(world.records)]
    world.put(key, cut(world.sound[key], cuts))
    world.used(may_go=of_rows(world, world.sound[key]))


COUNT = st.integers(0, 1000)
CASES = {
    "shard": (a_damaged_shard, (COUNT, CUTS, st.booleans())),
    "value": (a_changed_record, (COUNT, COUNT, JSON)),
    "bytes": (a_cut_record, (COUNT, CUTS)),
}


@pytest.mark.parametrize("case", CASES)
def test_damage_is_a_typed_error_and_costs_nothing_that_is_sound(world: World, case: str) -> None:
    run, strategies = CASES[case]
    SHORT(given(st.tuples(*strategies))(lambda drawn: run(world, *drawn)))()


@pytest.mark.prove
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("case", CASES)
def test_ten_thousand_kinds_of_damage_are_typed_errors_and_cost_nothing_that_is_sound(
    world: World, case: str
) -> None:
    run, strategies = CASES[case]
    LONG(given(st.tuples(*strategies))(lambda drawn: run(world, *drawn)))()
