"""The application on a port of this machine, as `musicgen-mlx-serve` runs it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from audiocraft_mlx.server.app import create_app
from audiocraft_mlx.server.connections import TimedProtocol
from audiocraft_mlx.server.security import SecuritySettings
from audiocraft_mlx.server.service import Service


@contextmanager
def running(service: Service, security: SecuritySettings | None = None) -> Iterator[str]:
    """Its address, without a slash at the end."""
    app = create_app(service, security or SecuritySettings())
    # asyncio sends small pieces at once (TCP_NODELAY) only where the protocol is named.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            http=TimedProtocol,
            lifespan="on",
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.005)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            app.state.context.stop()
            server.should_exit = True
            thread.join(10)
            assert not thread.is_alive()


def eventually(holds: object, seconds: float = 5.0) -> bool:
    """Whether `holds()` becomes true."""
    assert callable(holds)
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True
