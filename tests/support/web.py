"""A server on this machine that answers like a correct, a broken or a hostile one, and reads of media from it."""

import base64
import gzip
import http.server
import socket
import threading

import numpy as np
import pytest

from omni_jax.errors import UserError
from omni_jax.processing.media import source
from omni_jax.processing.options import MediaOptions

CONTENT = np.random.default_rng(0).bytes(300_000)
LOCAL = MediaOptions(allow_private=True, timeout=20)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by path like a correct, a broken or a hostile server."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.seen.append((self.path, dict(self.headers)))
        self.close_connection = True
        action, _, rest = self.path.partition("?")[0].strip("/").partition("/")
        getattr(self, f"do_{action}")(rest)

    def answer(self, status, content=b"", **headers):
        self.send_response(status)
        for name, value in ({"Content-Length": len(content)} | headers).items():
            if value is not None:
                self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(content)

    def do_good(self, _):
        self.answer(200, CONTENT)

    def do_empty(self, _):
        self.answer(200)

    def do_plain(self, _):  # neither length nor chunks: the body ends with the connection
        self.answer(200, CONTENT, **{"Content-Length": None})

    def do_status(self, status):
        self.answer(int(status), b"an error page")

    def do_redirect(self, count):  # through every status that redirects, the last to the file
        status = (301, 302, 303, 307, 308)[int(count) % 5]
        self.answer(status, Location="/good" if count == "1" else f"/redirect/{int(count) - 1}?key=hidden")

    def do_loop(self, _):
        self.answer(302, Location="/loop")

    def do_to(self, target):  # base64, so that any address can be named
        self.answer(302, Location=base64.urlsafe_b64decode(target).decode())

    def do_long(self, _):
        self.answer(200, CONTENT, **{"Content-Length": len(CONTENT) + 1})

    def do_short(self, _):
        self.answer(200, CONTENT, **{"Content-Length": 1000})

    def do_huge(self, _):
        self.answer(200, **{"Content-Length": 10**15})
        self.server.closing.wait()

    def do_endless(self, _):
        self.answer(200, **{"Content-Length": None})
        while not self.server.closing.is_set():
            self.wfile.write(CONTENT)

    def do_torn(self, _):  # chunks without the last
        self.answer(200, b"5\r\nhello\r\n", **{"Content-Length": None}, Transfer_Encoding="chunked")

    def do_trickle(self, _):
        self.answer(200, **{"Content-Length": 50})
        for _ in range(50):
            self.server.closing.wait(0.02)
            self.wfile.write(b".")

    def do_silent(self, _):
        self.server.closing.wait(1)
        self.answer(200, CONTENT)

    def do_garbled(self, _):
        self.wfile.write(b"220 ready\r\n\r\n")

    def do_gzip(self, _):
        self.answer(200, gzip.compress(CONTENT), Content_Encoding="gzip")

    def do_bomb(self, _):
        self.answer(200, gzip.compress(bytes(30_000_000)), Content_Encoding="gzip")

    def do_garbage(self, _):
        self.answer(200, CONTENT, Content_Encoding="gzip")

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    """Serves on a free port of this machine, and records the requests."""

    request_queue_size = 32

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen, self.closing, self.scheme = [], threading.Event(), "http"

    def url(self, path, host="127.0.0.1"):
        return f"{self.scheme}://{host}:{self.server_port}/{path}"

    def handle_error(self, *_):  # clients that hang up
        pass


def serve(server):
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.closing.set()
    server.shutdown()
    thread.join()
    server.server_close()


def read(url, options=LOCAL, noun="video"):
    with source.opened(url, source.describe(url, noun), noun, options) as file:
        assert file.tell() == 0
        return file.read()


def refused(url, pattern, options=LOCAL, noun="video", *, kind=UserError):
    with pytest.raises((ValueError, OSError), match=pattern) as caught:
        read(url, options, noun)
    message = str(caught.value)
    assert type(caught.value) in ((ValueError, UserError) if kind is UserError else (kind,))
    assert "\n" not in message
    assert len(message) < 400
    return message


def name_server(monkeypatch, *answers, fault=socket.EAI_NONAME):
    """Answers each lookup of a name by the next list of addresses, the last for good."""
    left, really = list(answers), socket.getaddrinfo

    def look_up(host, port, *args, **kwargs):
        if host not in ("name.test", b"name.test"):
            return really(host, port, *args, **kwargs)
        addresses = left.pop(0) if len(left) > 1 else left[0]
        if not addresses:
            raise socket.gaierror(fault, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


# A certificate of 127.0.0.1 for these tests only; no other client trusts it.
PAIR = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg8FuuDx4bch/94LQ4
hq9OGDFeNFVvBkLBZjlLuic/utKhRANCAARBy6F7QkwPEmT2F15Ey2s5g+RYVHWF
lEh+AK9fZB8ZySxCKK9b1oxNCozBdHHC0LEvNwQhx+lQbFy6Io4EdZs7
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBdjCCARygAwIBAgIBATAKBggqhkjOPQQDAjAZMRcwFQYDVQQDDA5vbW5pLWph
eCB0ZXN0czAgFw0yMDAxMDEwMDAwMDBaGA8yMTIwMDEwMTAwMDAwMFowGTEXMBUG
A1UEAwwOb21uaS1qYXggdGVzdHMwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAARB
y6F7QkwPEmT2F15Ey2s5g+RYVHWFlEh+AK9fZB8ZySxCKK9b1oxNCozBdHHC0LEv
NwQhx+lQbFy6Io4EdZs7o1MwUTAPBgNVHREECDAGhwR/AAABMA8GA1UdEwEB/wQF
MAMBAf8wDgYDVR0PAQH/BAQDAgKEMB0GA1UdDgQWBBQdTOUpoBSwz+jaDGr+J/4o
DrkmSTAKBggqhkjOPQQDAgNIADBFAiB6uztOY269MQVm4F8y125ZRNRIbAKheFKo
da58UZP7HAIhAJvZ2R4zcgz4GdtY25N5vjh7CJw4R042tGHanAB/ui7P
-----END CERTIFICATE-----
"""
