"""What the servers of tests and benchmarks share: threads that answer at a port of their own."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self


class LocalServer:
    """Answers on this machine while it is entered.

    Attributes:
        methods: of HTTP, to which it answers.
        place: host and port.
    """

    methods: tuple[str, ...] = ("GET", "HEAD")

    def __init__(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.place = f"127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer a request of any of `methods`."""
        raise NotImplementedError

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        def answer(request: BaseHTTPRequestHandler) -> None:
            self.answer(request)

        def quiet(request: BaseHTTPRequestHandler, format: str, *args: object) -> None:  # noqa: A002
            pass

        actions = {f"do_{method}": answer for method in self.methods}
        return type("Handler", (BaseHTTPRequestHandler,), {"log_message": quiet, **actions})
