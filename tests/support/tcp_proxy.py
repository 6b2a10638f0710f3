"""A TCP proxy with faults: latency, a bandwidth limit, silence (half-open connections), resets."""

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class TcpProxy:
    """Forwards 127.0.0.1:`port` to a server; the faults may be changed at any time and hold for all connections.

    Attributes:
        latency_s: added to every piece of data, each way.
        bytes_per_s: of each connection and direction; 0: no limit.
        silent: data is taken and never passed on, as by a network that drops packets.
    """

    def __init__(self, host: str, port: int) -> None:
        self._server_address = (host, port)
        self.latency_s = 0.0
        self.bytes_per_s = 0
        self.silent = False
        self.port = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._listening = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()
        assert self._listening.wait(10)

    def stop(self) -> None:
        self.reset()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def reset(self) -> None:
        """Reset (RST) every connection there is."""
        done = threading.Event()
        self._loop.call_soon_threadsafe(self._reset, done)
        assert done.wait(10)

    def heal(self) -> None:
        """No faults for what comes; connections that were silent are reset, as their peers would find out."""
        was_silent, self.silent = self.silent, False
        self.latency_s, self.bytes_per_s = 0.0, 0
        if was_silent:
            self.reset()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._listening.set()
        self._loop.run_forever()
        server.close()

    def _reset(self, done: threading.Event) -> None:
        for writer in self._writers:
            peer = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            writer.transport.abort()
        self._writers.clear()
        done.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection(*self._server_address)
        except OSError:
            writer.transport.abort()
            return
        pair = {writer, server_writer}
        self._writers |= pair
        await asyncio.gather(
            self._forward(reader, server_writer), self._forward(server_reader, writer), return_exceptions=True
        )
        for one in pair:
            one.transport.abort()
        self._writers -= pair

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(16_384):
            if self.silent:
                continue
            pause_s = self.latency_s + (len(data) / self.bytes_per_s if self.bytes_per_s else 0.0)
            if pause_s:
                await asyncio.sleep(pause_s)
            writer.write(data)
            await writer.drain()
        if not self.silent:
            writer.close()


@contextmanager
def tcp_proxy(address: str) -> Iterator[TcpProxy]:
    """A proxy before `host:port`."""
    host, port = address.rsplit(":", 1)
    proxy = TcpProxy(host, int(port))
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()
