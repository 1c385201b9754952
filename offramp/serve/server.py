"""A server in this process: in the foreground until it is stopped by a signal, or in a thread. Runs without torch."""

import asyncio
import math
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from offramp.argument_types import check_arguments
from offramp.lookup import ParameterError, nearest
from offramp.serve.logs import forwarded
from offramp.serve.models import Models, Opener, named
from offramp.serve.options import ServeOptions

FIELDS = [field.name for field in fields(ServeOptions)]
KEEP_ALIVE = 5
"""Seconds that a connection without requests stays open."""


class Server:
    """Serves bundles over HTTP.

    `Server("bundle").run()` blocks until SIGTERM or Ctrl-C, and then finishes the requests in progress. As a context
    manager, `with Server("bundle", port=0) as server: ...` serves from a thread at `server.url`.

    Args:
        bundles: folders of bundles, or `NAME=FOLDER`; a folder of bundles with numbers as names contains the versions
            of a model.
        opener: opens the models; see `offramp.serve.models.Models`.
        options: fields of `offramp.serve.options.ServeOptions`.
    Raises:
        ParameterError: if a value is invalid.
        OSError: if the address is in use.
        ImportError: if a package of the extra `serve` is missing.
    """

    @check_arguments
    def __init__(self, *bundles: Path | str, opener: Opener | None = None, **options: Any) -> None:
        for name in options:
            if name not in FIELDS:
                raise ParameterError(f"there is no option {name}; {nearest(name, FIELDS)}")
        self.options = ServeOptions(**options)
        try:
            import fastapi as fastapi
            import prometheus_client as prometheus_client
            import python_multipart as python_multipart
            import uvicorn
        except ImportError as error:
            raise ImportError(f"serving needs {error.name}: pip install 'offramp[serve]'") from None
        from offramp.serve.app import build
        from offramp.serve.connections import bounded
        from offramp.serve.direct import Shortcut

        self.models = Models(named([str(bundle) for bundle in bundles]), self.options, opener)
        self._socket = _listen(self.options)
        self.options = replace(self.options, port=self._socket.getsockname()[1])
        self.app = build(self.models, self.options)
        context = self.app.state.context
        # uvicorn calls it as it would a class
        protocol: Any = bounded(self.options.connections, context.requests.refuse, context.log)
        config = uvicorn.Config(
            Shortcut(self.app),
            http=protocol,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=math.ceil(self.options.drain_timeout),
            ws="none",
        )
        self._server = uvicorn.Server(config)
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._ran = False

    @property
    def url(self) -> str:
        """Address of the server."""
        host = self.options.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.options.port}"

    def run(self, opened: Callable[[], None] = lambda: None) -> None:
        """Serve until SIGTERM or Ctrl-C; then finish the requests in progress, within `drain_timeout` seconds.

        Args:
            opened: called when all models are open.
        Raises:
            ValueError: if a bundle cannot be opened.
            RuntimeError: if it has run before.
        """
        self._check_new()
        self._ran = True
        alone = threading.current_thread() is threading.main_thread()
        if alone:
            signal.signal(signal.SIGTERM, leave)  # uvicorn sends the signal again when it has ended
        with (
            forwarded(self.app.state.context.log, "" if alone else "uvicorn"),
            asyncio.Runner(loop_factory=_loop_factory()) as runner,
        ):
            runner.run(self._serve(opened))

    def stop(self) -> None:
        """Begin to stop; `run` returns when all requests in progress are answered."""
        self._server.should_exit = True

    def __enter__(self) -> "Server":
        self._check_new()
        self._thread = threading.Thread(target=self._in_thread, name="offramp-server", daemon=True)
        self._thread.start()
        while not self._server.started and self._thread.is_alive():
            self._thread.join(0.01)
        if not self._server.started:
            raise self._failure or RuntimeError("the server did not start")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
        if self._thread is not None:
            self._thread.join()

    def _check_new(self) -> None:
        if self._ran:
            raise RuntimeError("this server has run before, and its socket is closed: create another Server")

    def _in_thread(self) -> None:
        try:
            self.run()
        except BaseException as error:  # given to whoever waits for the start
            self._failure = error

    async def _serve(self, opened: Callable[[], None]) -> None:
        """Open the models here, so that what is wrong with them is raised; then listen."""
        try:
            for name in self.models.folders:
                await self.models.load(name)
            opened()
            from offramp.serve.connections import close_idle

            context, options = self.app.state.context, self.options
            reaper = asyncio.create_task(
                close_idle(
                    self._server.server_state,
                    options.header_timeout,
                    options.body_timeout,
                    context.requests.refuse,
                    context.log,
                )
            )
            await self._server.serve(sockets=[self._socket])
            reaper.cancel()
        finally:
            await self.models.close()
            self._socket.close()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's event loop, which takes less time per request, if it is installed."""
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def leave(number: int, frame: object) -> None:
    """End with status 0: being stopped is no failure."""
    raise SystemExit(0)


def _listen(options: ServeOptions) -> socket.socket:
    """A listening socket, bound before anything is opened."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # else asyncio does not set TCP_NODELAY
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((options.host, options.port))
    except OSError as error:
        listening.close()
        raise OSError(f"cannot listen on {options.host} port {options.port}: {error.strerror}") from None
    return listening
