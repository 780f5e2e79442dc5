"""A dcgm-exporter on this machine: serves what a test gives it.

EXPOSITION has the form of real answers: one MIG GPU with two instances, one GPU without MIG.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

EXPOSITION = (Path(__file__).parent / "golden" / "dcgm_exporter.prom").read_text(encoding="utf-8")
MIG_GPU, WHOLE_GPU = "GPU-58e8f5ea-13cc-013a-d88f-2bcf5ae8bc77", "GPU-265c9814-6156-355b-e589-ff2064894f16"
Respond = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def serving(respond: Respond) -> Iterator[str]:
    """A live exporter on this machine; yields its URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            respond(self)

        def log_message(self, *_args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/metrics"
        finally:
            server.shutdown()
            thread.join()


def answers(text: str, status: int = 200) -> Respond:
    def respond(request: BaseHTTPRequestHandler) -> None:
        body = text.encode()
        request.send_response(status)
        request.send_header("Content-Type", "text/plain; version=0.0.4")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    return respond
