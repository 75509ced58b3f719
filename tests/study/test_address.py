"""An address at which no Ray answers is told within seconds, with the address and what to do."""

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deltasae_ray.errors import ConfigError, ResourceError
from deltasae_ray.study.address import answering_address, check_answers, parsed


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that takes connections and says nothing."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


@pytest.fixture
def nobody() -> int:
    """A port where nobody listens."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nobody_listens_is_told_with_the_remedy(
    scheme: str, nobody: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"{scheme}127.0.0.1:{nobody}")
    began = time.monotonic()
    with pytest.raises(
        ResourceError,
        match=rf"RAY_ADDRESS='{scheme}127.0.0.1:{nobody}': nobody answers .*ray start --head.*unset it",
    ):
        answering_address(within=1)
    assert time.monotonic() - began < 3


def test_what_listens_and_is_no_ray_is_told(silent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{silent}")
    with pytest.raises(
        ResourceError, match=f"listens at 127.0.0.1:{silent} does not answer as Ray's head within 1 s"
    ):
        answering_address(within=1)


def test_a_host_that_swallows_packets_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        socket,
        "create_connection",
        lambda *_, timeout: (time.sleep(timeout), (_ for _ in ()).throw(TimeoutError("timed out"))),
    )
    began = time.monotonic()
    with pytest.raises(ResourceError, match="nobody answers at 10.255.255.1:6379 within 1 s"):
        check_answers("RAY_ADDRESS='10.255.255.1:6379'", "10.255.255.1", 6379, client=False, within=1)
    assert time.monotonic() - began < 3


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.5",
        "10.0.0.5:",
        "10.0.0.5:port",
        "10.0.0.5:99999",
        "10.0.0.5:0",
        "http://h:8265",
        ":6379",
        "h:1:2",
        "a b:6379",
    ],
)
def test_what_is_no_address_is_refused_with_an_example(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConfigError, match=r"is no address of Ray: give host:port, as 10.0.0.5:6379"):
        answering_address()


def test_addresses_are_taken_apart_and_passwords_are_not_shown() -> None:
    assert parsed("head.example:6379") == ("head.example", 6379, False)
    assert parsed("ray://10.0.0.5:10001") == ("10.0.0.5", 10001, True)
    assert parsed("[fd00::5]:6379") == ("fd00::5", 6379, False)
    with pytest.raises(ConfigError) as refused:
        parsed("ray://user:hunter2@host:10001")
    assert "hunter2" not in str(refused.value)


def test_a_note_of_a_cluster_that_is_gone_is_told_and_a_local_ray_is_started(
    nobody: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert answering_address(within=1) is None, "there is no note"
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{nobody}")
    assert answering_address(within=1) == "local"
    assert f"ray_current_cluster names 127.0.0.1:{nobody}" in caplog.text


def test_a_head_that_comes_up_meanwhile_is_waited_for(nobody: int) -> None:
    def come() -> None:
        time.sleep(0.3)
        with socket.create_server(("127.0.0.1", nobody)) as server:
            server.settimeout(5)
            server.accept()

    head = threading.Thread(target=come)
    head.start()
    check_answers("RAY_ADDRESS", "127.0.0.1", nobody, client=False, within=4, asks=lambda *_: None)
    head.join()
