"""Faults of the network before Redis and Triton, and a frozen broker: nothing is lost, and it ends by itself."""

import os
import signal
import time
from pathlib import Path

import pytest

from deploy.local.stack import Stack
from tests.chaos.random_load import random_load
from tests.mirrored_table import MirroredTable, wait_until
from tests.tcp_proxy import TcpProxy, tcp_proxy

FAULTS = ("latency", "reset", "silent", "bandwidth")


def inject(proxy: TcpProxy, fault: str) -> None:
    match fault:
        case "latency":
            proxy.latency_s = 0.15
        case "reset":
            proxy.reset()
        case "silent":
            proxy.silent = True
        case "bandwidth":
            proxy.bytes_per_s = 200_000


@pytest.mark.parametrize("part", ["redis", "triton"])
def test_a_faulty_network_before_a_part_loses_nothing(stack: Stack, tmp_path: Path, part: str) -> None:
    table = MirroredTable(stack, tmp_path, partitions=2)
    addresses = stack.addresses()
    address = addresses.redis_url.split("//")[1].split("/")[0] if part == "redis" else addresses.triton_grpc
    try:
        with tcp_proxy(address) as proxy:
            text = table.config_path.read_text().replace(address, f"127.0.0.1:{proxy.port}")
            text = text.replace("[redis]", "[redis]\n            timeout_s = 2.0")
            table.config_path.write_text(
                text.replace("[embedding]", "[embedding]\n            timeout_s = 2.0")
            )
            table.connect()
            with table.daemon() as daemon, random_load(table, truncates=False) as load:
                for fault in FAULTS:
                    inject(proxy, fault)
                    before = load.statements
                    wait_until(lambda before=before: load.statements > before + 250)
                    proxy.heal()
                load.stop()
                table.wait_equal(120)
                assert daemon.process.poll() is None
    finally:
        table.close()


def test_a_broker_that_freezes_and_wakes_loses_nothing(stack: Stack, tmp_path: Path) -> None:
    table = MirroredTable(stack, tmp_path, partitions=2)
    try:
        table.connect()
        with table.daemon() as daemon, random_load(table, truncates=False) as load:
            wait_until(lambda: load.statements > 100)
            os.kill(stack.pid("kafka"), signal.SIGSTOP)
            try:
                time.sleep(8)  # longer than the daemon's session; a frozen broker cannot be asked
            finally:
                os.kill(stack.pid("kafka"), signal.SIGCONT)
            load.stop()
            table.wait_equal(120)
            assert daemon.process.poll() is None
    finally:
        table.close()
