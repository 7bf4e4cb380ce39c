"""`musicgen-mlx-serve`: the page and the server.

Nothing heavy is imported before the arguments are validated: `--help` and mistakes are answered at once.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import gc
import ipaddress
import logging
import os
import secrets
import signal
import socket
import string
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from audiocraft_mlx.checkpoints.model_files import DEMO
from audiocraft_mlx.cli.arguments import add_lora, add_quantization, number
from audiocraft_mlx.cli.common import Parser, print_stderr, print_stdout, run_command
from audiocraft_mlx.clips.defaults import MUSICGEN
from audiocraft_mlx.clips.requests import ModelOptions
from audiocraft_mlx.errors import MusicGenError, UsageError
from audiocraft_mlx.files import expand_home
from audiocraft_mlx.machine import PROGRAM_BYTES, limit_heaps, require_memory
from audiocraft_mlx.validation import DURATION

if TYPE_CHECKING:
    from audiocraft_mlx.server.service import ServerSettings

PROGRAM = "musicgen-mlx-serve"
TOKEN_VARIABLE = "MUSICGEN_MLX_TOKEN"
_MAX_DURATION = 300.0
_LOOPBACK = "127.0.0.1"
_PACKAGES = ("fastapi", "uvicorn", "platformdirs")
_HEAPS = 1
"""Of some 30 threads: with one each, memory grows until all of them have had work.

And `trim_heap` gives back the free end of the first one only. Making clips takes as long with one as with two
(measured: a dozen jobs at once): their arrays come from MLX's own cache.
"""
_FILES = 2048
"""That the process may have open, where the system lets it."""
_BACKLOG = 128
_TOKEN_CHARACTERS = frozenset(string.ascii_letters + string.digits + "-._~")
_MIN_TOKEN = 8
# For answers, after Ctrl-C: streams end by themselves, and who stopped sending or reading isn't waited for.
_GRACE_SECONDS = 0.4
# What uvicorn says of connections that are closed on purpose: at the end, and of clips that ended early.
_EXPECTED_LOGS = ("ASGI callable returned without completing response", "Cancel %s running task")
HINT = (
    "This is the small demo model. A released one makes better music: stop the server and start it with"
    " -m small --allow-downloads (about 2 GB, once)."
)


def main(argv: list[str] | None = None) -> int:
    """Run the command with `argv` (default: `sys.argv[1:]`) and return its exit status."""
    return run_command(_serve, argv, PROGRAM)


@dataclass(frozen=True)
class Access:
    """How the server is reached."""

    host: str
    port: int
    """0: any free one."""
    token: str | None
    names: frozenset[str]
    """By which it may be called, in lower case."""
    any_address: bool
    """Numeric addresses too."""

    def url(self, port: int) -> str:
        """The address to open, with the token."""
        name = self.host
        if name in ("0.0.0.0", "::"):
            name = _own_address()
        name = f"[{name}]" if ":" in name else name
        return f"http://{name}:{port}/" + (f"?token={self.token}" if self.token else "")


def _serve(argv: list[str] | None) -> None:
    arguments = make_parser().parse_args(argv)
    access = make_access(arguments)
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise UsageError(
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing; install the server with: "
            "pip install 'musicgen-mlx[serve]'"
        )
    require_memory(PROGRAM_BYTES)  # else the imports below crash
    limit_heaps(_HEAPS)
    _allow_files()
    settings = _settings(arguments)
    listener = _listen(access.host, access.port)
    with listener:
        _run(listener, access, settings, arguments.open, arguments.rebuild)


def _allow_files() -> None:
    """A Mac gives a process 256 files, which connections, streams and the history share."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _settings(arguments: argparse.Namespace) -> ServerSettings:
    import platformdirs

    from audiocraft_mlx.checkpoints.hub_client import is_repo_name
    from audiocraft_mlx.checkpoints.model_files import cached_bytes, resolve_model
    from audiocraft_mlx.server.service import Limits, ServerSettings

    name = arguments.model or (DEMO if cached_bytes(MUSICGEN.model) is None else MUSICGEN.model)
    resolve_model(name)  # a name that is none is told now, not by the first job
    model = ModelOptions(
        name,
        quantize=arguments.quantize,
        int8_activations=arguments.int8_activations,
        cache_bits=arguments.cache_bits,
    )
    data = arguments.data or platformdirs.user_data_path("musicgen-mlx", appauthor=False) / "server"
    limits = replace(Limits(), duration=arguments.max_duration)
    hint = HINT if name == DEMO else None
    for spec in arguments.lora:
        if not expand_home(spec.name).is_dir() and not is_repo_name(spec.name):
            raise UsageError(
                f"--lora: {spec.name} is neither a folder nor a repository on the Hub; try {PROGRAM} --help"
            )
    return ServerSettings(data, model, hint, arguments.allow_downloads, limits, tuple(arguments.lora))


def _run(
    listener: socket.socket, access: Access, settings: ServerSettings, open_page: bool, rebuild_first: bool
) -> None:
    import uvicorn

    from audiocraft_mlx.server.app import create_app
    from audiocraft_mlx.server.connections import TimedProtocol
    from audiocraft_mlx.server.security import SecuritySettings
    from audiocraft_mlx.server.service import Service, rebuild

    if rebuild_first:
        print_stderr(f"rebuilt the history from the files' tags: {rebuild(settings.data)} jobs")
    service = Service(settings)
    limits = settings.limits
    security = SecuritySettings(
        access.names,
        access.any_address,
        access.token,
        body_bytes=limits.body_bytes,
        connections=limits.connections,
    )
    spool = settings.data / "making"
    app = create_app(service, security, spool if spool.is_dir() else None)
    # Modules and routes are for ever. Python looks for cycles among all objects once the new ones are a
    # quarter of the old ones: without these that takes less memory, and little time in the middle of a job.
    gc.freeze()

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            super().handle_exit(sig, frame)
            app.state.context.stop()

    logging.basicConfig(format=f"{PROGRAM}: %(message)s", level=logging.WARNING)
    logging.getLogger("uvicorn.error").addFilter(_is_unexpected)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        http=TimedProtocol,
        ws="none",
        lifespan="on",
        backlog=_BACKLOG,  # asyncio accepts as many before the first of them can be closed
    )
    # uvicorn declares whole seconds, and hands it to asyncio, which knows fractions.
    config.timeout_graceful_shutdown = _GRACE_SECONDS  # type: ignore[assignment]
    server = Server(config)
    # Ctrl-C just before it has begun.
    warnings.filterwarnings("ignore", r"coroutine 'Server\.serve' was never awaited")
    # uvicorn raises the signals that it got once more at its end.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    port = listener.getsockname()[1]
    try:
        print_stdout(f"{PROGRAM}: {access.url(port)} (Ctrl-C ends it)")
        with _open_page(access, port) if open_page else nullcontext():
            server.run(sockets=[listener])
    except KeyboardInterrupt:
        if not server.started:
            service.close()
            return
    if not server.started:
        raise MusicGenError("the server couldn't start; the lines above say why")
    # MLX takes its threads down at the end of the process, which aborts it while one computes.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _is_unexpected(record: logging.LogRecord) -> bool:
    # A request that is still being sent, or read, when the server ends.
    if record.exc_info is not None and isinstance(record.exc_info[1], asyncio.CancelledError):
        return False
    return not str(record.msg).startswith(_EXPECTED_LOGS)


@contextmanager
def _open_page(access: Access, port: int) -> Iterator[None]:
    """In the browser, if there is a screen: over ssh it would be one in the terminal."""
    url = access.url(port)
    if sys.platform != "darwin" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        yield
    elif access.token is None:
        _open_url(url)
        yield
    else:
        # Other users see the browser's command line. Only this one can read the file.
        with tempfile.NamedTemporaryFile("w", prefix="musicgen-mlx-", suffix=".html") as file:
            file.write(f'<!DOCTYPE html><meta http-equiv="refresh" content="0; url={url}">\n')
            file.flush()
            _open_url(Path(file.name).as_uri())
            yield


def _open_url(url: str) -> None:
    import webbrowser

    def open_url() -> None:
        with suppress(webbrowser.Error, OSError):
            webbrowser.open(url)

    # It connects when the server is ready: the socket listens already.
    threading.Thread(target=open_url, daemon=True).start()


def _listen(host: str, port: int) -> socket.socket:
    """Raises `MusicGenError`: the port is occupied, for example."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise UsageError(f"--host: {host!r} is no address of this machine; try {_LOOPBACK}") from error
    # With its protocol: else asyncio doesn't switch off the delay of small pieces (TCP_NODELAY).
    listener = socket.socket(family, kind, protocol or socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise MusicGenError(
                f"port {port} is in use; stop the program that uses it, or choose another one with --port"
            ) from error
        if error.errno == errno.EACCES:
            raise MusicGenError(f"port {port} may not be used by you; choose one above 1023") from error
        raise UsageError(
            f"--host: {host} can't be used ({error.strerror or error}); try {_LOOPBACK}"
        ) from error
    return listener


def make_access(arguments: argparse.Namespace) -> Access:
    """Who may call, by the options. Other names and addresses than this machine's own need a token."""
    host = arguments.host.lower()
    local = _is_loopback(host)
    named = frozenset(arguments.allowed_host or ())
    token = arguments.token or os.environ.get(TOKEN_VARIABLE) or None
    if token is None and (not local or named):
        token = secrets.token_urlsafe(24)
    if token is not None and (len(token) < _MIN_TOKEN or not _TOKEN_CHARACTERS.issuperset(token)):
        raise UsageError(
            f"--token: it must have {_MIN_TOKEN} or more letters, digits and -._~; leave it out to get a "
            f"random one; try {PROGRAM} --help"
        )
    names = {"localhost", "127.0.0.1", "::1", host} | named
    if not local:
        own = socket.gethostname().lower()
        names |= {own, f"{own.partition('.')[0]}.local"}
    return Access(host, arguments.port, token, frozenset(names), any_address=not local)


def _is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _own_address() -> str:
    """This machine's in its network, or its name."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # an address of nobody; nothing is sent
        return str(probe.getsockname()[0])
    return socket.gethostname()


def make_parser() -> Parser:
    parser = Parser(
        prog=PROGRAM,
        description="Make music on a page in the browser, and serve it to programs that speak the interfaces "
        "of OpenAI, ElevenLabs or Hugging Face.",
    )
    _add_model(parser)
    _add_server(parser)
    return parser


def _add_model(parser: Parser) -> None:
    add = parser.add_argument_group("model").add_argument
    add(
        "-m",
        "--model",
        metavar="NAME",
        help="the default model: a short name, a repository on the Hugging Face Hub, a local folder, or demo "
        f"(default: {MUSICGEN.model} if it has been downloaded, else demo)",
    )
    add_lora(add, "add the default model with this LoRA adapter to the list of models")
    add_quantization(add)
    add(
        "--allow-downloads",
        action="store_true",
        help="download a released model that is chosen on the page, or by -m, and isn't there yet",
    )


def _add_server(parser: Parser) -> None:
    add = parser.add_argument_group("server").add_argument
    add(
        "--host",
        metavar="ADDRESS",
        type=_text,
        default=_LOOPBACK,
        help="the address to listen on; any other than this machine's own needs a token (default: "
        "%(default)s)",
    )
    add(
        "--port",
        metavar="N",
        type=_port,
        default=8000,
        help="0: any that is free (default: %(default)s)",
    )
    add("--no-open", dest="open", action="store_false", help="don't open the page in the browser")
    add(
        "--data",
        metavar="FOLDER",
        type=_path,
        help="where clips and their history are kept (default: musicgen-mlx/server where this system keeps "
        "programs' data)",
    )
    add(
        "--token",
        metavar="TOKEN",
        type=_text,
        help=f"who calls must know it; rather give it in {TOKEN_VARIABLE}, which other users can't see "
        "(default: none, or a random one that is printed with another --host or an --allowed-host)",
    )
    add(
        "--allowed-host",
        metavar="NAME",
        type=_host_name,
        action="append",
        help="another name by which the server may be called, that of a reverse proxy for example; more than "
        "one may be given",
    )
    add(
        "--max-duration",
        metavar="SEC",
        type=number(DURATION),
        default=_MAX_DURATION,
        help="the longest clip that may be asked for (default: %(default)g)",
    )
    add(
        "--rebuild",
        action="store_true",
        help="first make the history again from the tags of the clips, if its database is lost or damaged",
    )


def _text(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("must not be empty")
    return text.strip()


def _path(text: str) -> Path:
    return expand_home(_text(text))


def _host_name(text: str) -> str:
    name = _text(text).lower().rstrip(".")
    if not all(part and part.replace("-", "").replace("_", "").isalnum() for part in name.split(".")):
        raise argparse.ArgumentTypeError(f"must be a name such as music.example.org, not {text!r}")
    return name


def _port(text: str) -> int:
    with suppress(ValueError):
        if 0 <= int(text) <= 65535:
            return int(text)
    raise argparse.ArgumentTypeError(f"must be an integer from 0 to 65535, not {text!r}")
