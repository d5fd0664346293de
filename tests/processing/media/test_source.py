"""Sources of media: each source gives its bytes, and downloads stay within bounds. Nothing leaves this machine."""

import asyncio
import base64
import contextlib
import functools
import gc
import gzip
import http.server
import io
import os
import re
import socket
import ssl
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import aiohttp
import fsspec
import numpy as np
import pytest

from omni_jax.processing.media import local_file, source
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


@pytest.fixture
def web():
    yield from serve(Server())


@pytest.fixture
def secure_web(tmp_path, monkeypatch):
    """The server behind TLS, with a certificate that clients trust."""
    (tmp_path / "pair.pem").write_text(PAIR)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pair.pem")
    trust = ssl.create_default_context(cafile=tmp_path / "pair.pem")
    monkeypatch.setattr(aiohttp, "TCPConnector", functools.partial(aiohttp.TCPConnector, ssl=trust))
    server = Server()
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.scheme = "https"
    yield from serve(server)


def read(url, options=LOCAL, noun="video"):
    with source.opened(url, source.describe(url, noun), noun, options) as file:
        assert file.tell() == 0
        return file.read()


def refused(url, pattern, options=LOCAL, noun="video"):
    with pytest.raises(ValueError, match=pattern) as caught:
        read(url, options, noun)
    message = str(caught.value)
    assert type(caught.value) is ValueError
    assert "\n" not in message
    assert len(message) < 400
    return message


def test_a_url_is_fetched_once_and_completely(web):
    assert read(web.url("good")) == CONTENT
    assert read(web.url("plain")) == CONTENT
    assert [path for path, _ in web.seen] == ["/good", "/plain"]
    assert web.seen[0][1]["Accept-Encoding"] == "identity"


def test_a_long_download_is_stored_on_disk(web, monkeypatch):
    monkeypatch.setattr(source, "_IN_MEMORY", 1_000)
    with source.opened(web.url("good"), "a.mp4", "video", LOCAL) as file:
        assert isinstance(file.fileno(), int)  # in memory there is none
        assert file.seekable()
        assert file.read() == CONTENT
        file.seek(-10, os.SEEK_END)
        assert file.read() == CONTENT[-10:]
    assert file.closed


def test_redirects_are_followed_five_times(web):
    assert read(web.url("redirect/5")) == CONTENT
    assert [path for path, _ in web.seen][-1] == "/good"
    refused(web.url("redirect/6"), "is redirected more than 5 times")
    refused(web.url("loop"), "is redirected more than 5 times")


@pytest.mark.parametrize(
    ("status", "words"),
    [(404, "Not Found"), (403, "Forbidden"), (500, "Internal Server Error"), (302, "Found"), (599, "unknown")],
)
def test_http_errors_are_reported(web, status, words):
    refused(web.url(f"status/{status}"), rf"/status/{status}: the server answers {status} \({words}\)")


FAULTS = {
    "empty": r"is empty \(0 bytes\); expected a video file",
    "long": "broke off before its end",
    "torn": "broke off before its end",
    "garbage": "broke off before its end, or is garbled",
    "garbled": "does not answer in proper HTTP",
    "status/404": "404",
    "loop": "redirected",
}


@pytest.mark.parametrize("path", FAULTS)
def test_errors_are_one_line_without_secrets(web, path):
    url = web.url(f"{path}?token=hidden#hidden", host="user:hidden@127.0.0.1")
    message = refused(url, f"^http://127.0.0.1:{web.server_port}/{path}: .*{FAULTS[path]}")
    assert "hidden" not in message
    assert "user" not in message


def test_credentials_are_not_sent_to_other_hosts(web):
    elsewhere = base64.urlsafe_b64encode(web.url("good", host="localhost").encode()).decode()
    assert read(web.url(f"to/{elsewhere}", host="user:word@127.0.0.1")) == CONTENT
    first, second = (headers for _, headers in web.seen)
    assert first["Authorization"] == f"Basic {base64.b64encode(b'user:word').decode()}"
    assert "Authorization" not in second


def test_only_the_stated_length_is_read(web):
    # It depends on timing whether aiohttp sees the rest.
    with contextlib.suppress(ValueError):
        assert read(web.url("short")) == CONTENT[:1000]
    assert "/short" in web.seen[0]


def test_the_size_of_a_download_is_bounded(web):
    size = len(CONTENT)
    assert read(web.url("good"), MediaOptions(allow_private=True, max_bytes=size)) == CONTENT
    assert read(web.url("plain"), MediaOptions(allow_private=True, max_bytes=size)) == CONTENT
    for path in ("good", "plain"):
        refused(web.url(path), f"is larger than {size - 1} bytes", MediaOptions(allow_private=True, max_bytes=size - 1))
    refused(web.url("huge"), "is larger than 2147483648 bytes", LOCAL)  # refused by its stated length: no body is sent
    refused(web.url("endless"), "is larger than 5000000 bytes", MediaOptions(allow_private=True, max_bytes=5_000_000))


def test_compressed_bytes_count_inflated(web):
    bound = MediaOptions(allow_private=True, max_bytes=1_000_000)
    assert read(web.url("gzip"), bound) == CONTENT
    refused(web.url("bomb"), "is larger than 1000000 bytes", bound)


@pytest.mark.parametrize("path", ["trickle", "silent"])
def test_the_time_of_a_download_is_bounded(web, path):
    options = MediaOptions(allow_private=True, timeout=0.3)
    refused(web.url(path), r"could not be fetched in 0\.3 s; download it first, or raise timeout", options)


PRIVATE = [
    "127.0.0.1", "localhost", "[::1]", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
    "224.0.0.1", "240.0.0.1", "255.255.255.255", "[::]", "[::ffff:127.0.0.1]", "[::127.0.0.1]", "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]", "[2001:0:1:2::1]", "[fe80::1]", "[fec0::1]", "[fd00::1]", "[ff02::1]",
]  # fmt: skip


@pytest.mark.parametrize("host", PRIVATE)
def test_private_addresses_are_refused(web, host):
    refused(web.url("good", host), "leads to a private address, refused unless allow_private", MediaOptions(timeout=20))
    assert not web.seen


@pytest.mark.parametrize(
    "host", ["2130706433", "0x7f000001", "0x7f.1", "127.1", "0177.0.0.1", "127.0.0.1.", "①27.0.0.1"]
)
def test_odd_spellings_of_private_addresses_are_refused(web, host):
    # Some versions of aiohttp let the system resolve them, others call them invalid URLs.
    refused(web.url("good", host), "leads to a private address|is not a valid URL", MediaOptions(timeout=20))
    assert not web.seen


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "100.63.0.1", "2606:4700::1", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"]
)
def test_public_addresses_are_allowed(address):
    assert source.is_public(address)


def test_a_name_is_not_a_public_address():
    assert not source.is_public("localhost")


@pytest.fixture
def as_public(monkeypatch):
    """Makes 127.0.0.1 count as public, and leaves every other address as it is."""
    really = source.is_public
    monkeypatch.setattr(source, "is_public", lambda address: address == "127.0.0.1" or really(address))
    return MediaOptions(timeout=20)


@pytest.mark.parametrize("host", ["127.0.0.2", "[::ffff:7f00:2]", "[::1]", "169.254.169.254"])
def test_a_redirect_to_a_private_address_is_refused(web, as_public, host):
    target = base64.urlsafe_b64encode(web.url("good", host).encode()).decode()
    refused(web.url(f"to/{target}"), "leads to a private address", as_public)
    assert len(web.seen) == 1


@pytest.fixture
def store(monkeypatch):
    """An object store of this process, as gs:// is one of Google's."""
    monkeypatch.setitem(source._STORES, "memory", "memoryfs")
    files = fsspec.filesystem("memory")
    files.pipe("/bucket/a.wav", CONTENT)
    yield
    monkeypatch.undo()  # of the store's own methods too
    files.rm("/bucket", recursive=True)


def test_an_object_of_a_store_is_read(store, monkeypatch):
    url = "memory://bucket/a.wav"
    with source.opened(url, url, "audio") as file:
        assert file.read() == CONTENT
    with pytest.raises(ValueError, match=r"^memory://bucket/a.wav: is larger than 1000 bytes; download it first"):
        read(url, options=MediaOptions(max_bytes=1000))
    with pytest.raises(ValueError, match=r"^memory://bucket/b.wav: no such object; check the URL$"):
        read("memory://bucket/b.wav")
    monkeypatch.setitem(source._STORES, "nowhere", "nowherefs")
    with pytest.raises(ValueError, match=r"^nowhere://a: cannot be read "):
        read("nowhere://a")

    def lacking(url):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr("fsspec.core.url_to_fs", lacking)
    with pytest.raises(ValueError, match=r"^gs://bucket/a.wav: gs URLs need gcsfs; pip install gcsfs$"):
        read("gs://bucket/a.wav")


class Unsized(io.RawIOBase):
    """An endless object that arrives in small pieces."""

    def __init__(self, wait=0.0):
        self.wait = wait

    def readable(self):
        return True

    def read(self, size=-1, /):
        time.sleep(self.wait)
        return CONTENT[:size]


@pytest.mark.parametrize("stated", [{"size": None}, {"size": 1000}, {}], ids=["unknown", "too small", "none"])
def test_an_object_is_bounded_by_the_bytes_that_arrive(store, monkeypatch, stated):
    files, url = type(fsspec.filesystem("memory")), "memory://bucket/a.wav"
    monkeypatch.setattr(files, "info", lambda self, path: {"name": path, "type": "file"} | stated)
    assert read(url) == CONTENT
    assert read(url, MediaOptions(max_bytes=len(CONTENT))) == CONTENT
    refused(url, f"^{url}: is larger than {len(CONTENT) - 1} bytes", MediaOptions(max_bytes=len(CONTENT) - 1))
    monkeypatch.setattr(files, "open", lambda self, path, mode: Unsized())
    refused(url, f"^{url}: is larger than 5000000 bytes; download it first", MediaOptions(max_bytes=5_000_000))


def test_the_time_of_an_object_is_bounded(store, monkeypatch):
    files, url, answer = type(fsspec.filesystem("memory")), "memory://bucket/a.wav", threading.Event()
    late = "memory://bucket/a.wav: could not be fetched in 0.2 s; download it first, or raise timeout"
    assert read(url, MediaOptions(timeout=2**62)) == CONTENT
    monkeypatch.setattr(files, "open", lambda self, path, mode: Unsized(wait=0.02))
    refused(url, f"^{late}$", MediaOptions(timeout=0.2))  # it arrives too slowly
    monkeypatch.setattr(files, "info", lambda self, path: {"size": answer.wait(20)})
    refused(url, f"^{late}$", MediaOptions(timeout=0.2))  # the store does not answer
    answer.set()
    left = [thread for thread in threading.enumerate() if thread.name.startswith("omni_jax")]
    for thread in left:
        thread.join(20)
        assert not thread.is_alive()

    def slow(self, path):
        raise TimeoutError("no answer from the store's host")

    monkeypatch.setattr(files, "info", slow)
    refused(url, "cannot be read .no answer from the store's host.$")


@pytest.mark.parametrize(
    "target",
    ["file:///etc/passwd", "ftp://example.org/a", "data:text/plain,hello", "gopher://127.0.0.1", "javascript:0"],
)
def test_a_redirect_to_another_scheme_is_refused(web, target):
    path = f"to/{base64.urlsafe_b64encode(target.encode()).decode()}"
    refused(web.url(path), "is redirected to something that is neither http nor https; refused")


def name_server(monkeypatch, *answers):
    """Answers each lookup of a name by the next list of addresses, the last for good."""
    left, really = list(answers), socket.getaddrinfo

    def look_up(host, port, *args, **kwargs):
        if host not in ("name.test", b"name.test"):
            return really(host, port, *args, **kwargs)
        addresses = left.pop(0) if len(left) > 1 else left[0]
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


def test_a_name_is_checked_by_the_address_of_its_connection(web, as_public, monkeypatch):
    name_server(monkeypatch, ["127.0.0.1"], ["127.0.0.2"])
    assert read(web.url("good", "name.test"), as_public) == CONTENT
    refused(web.url("good", "name.test"), "leads to a private address", as_public)
    name_server(monkeypatch, ["10.0.0.1", "127.0.0.2", "192.168.0.1"])
    refused(web.url("good", "name.test"), "leads to a private address", as_public)
    name_server(monkeypatch, ["10.0.0.1", "127.0.0.1"])
    assert read(web.url("good", "name.test"), as_public) == CONTENT


def test_unreachable_hosts_are_reported(web, monkeypatch):
    name_server(monkeypatch, [])
    refused(web.url("good", "name.test"), r"its host is not found \(Name or service not known\)")
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        refused(f"http://127.0.0.1:{unheard.getsockname()[1]}/a.mp4", "no connection to its host")


@pytest.mark.parametrize(
    "url", ["http://", "http:///a.mp4", "http://[::1", "http://a:b:c/", "http://h:99999/", "http://a..b/"]
)
def test_invalid_urls_are_refused(url):
    refused(url, "is not a valid URL")


def test_https_is_read(secure_web):
    assert read(secure_web.url("good")) == CONTENT
    assert read(secure_web.url("redirect/3")) == CONTENT


def test_a_redirect_from_https_to_http_is_refused(web, secure_web):
    target = base64.urlsafe_b64encode(web.url("good?key=hidden").encode()).decode()
    assert "hidden" not in refused(secure_web.url(f"to/{target}"), "is redirected from https to http, .*; refused")
    assert not web.seen
    upwards = base64.urlsafe_b64encode(secure_web.url("good").encode()).decode()
    assert read(web.url(f"to/{upwards}")) == CONTENT


def test_an_unknown_certificate_is_refused(secure_web, web, monkeypatch):
    monkeypatch.setattr(aiohttp, "TCPConnector", aiohttp.TCPConnector.func)
    refused(secure_web.url("good"), r"no secure connection to its host \(self.signed certificate\)")
    refused(web.url("good").replace("http:", "https:"), r"no secure connection to its host \(.+\)")


def test_a_proxy_of_the_environment_is_not_used(web, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert read(web.url("good")) == CONTENT


def test_a_url_is_read_inside_a_running_event_loop(web):
    async def cell():  # as in a notebook, whose cells run under a loop
        return read(web.url("good"))

    assert asyncio.run(cell()) == CONTENT


def test_many_threads_fetch_at_once(web):
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(read, [web.url("good")] * 16)) == {CONTENT}


def test_no_connection_is_left_open(web, caplog):
    gc.collect()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read(web.url("good"))
        for path in ("status/404", "loop", "long", "garbage"):
            refused(web.url(path), ".")
        refused(web.url("silent"), "0.1 s", MediaOptions(allow_private=True, timeout=0.1))
        refused(web.url("endless"), "larger", MediaOptions(allow_private=True, max_bytes=1000))
        refused(web.url("good"), "private", MediaOptions())
        gc.collect()
    assert not caught
    assert not caplog.records  # aiohttp logs sessions that nobody closed


class Pipe(io.BytesIO):
    """A file object that cannot seek."""

    def seekable(self):
        return False


class Counted(io.BytesIO):
    """A file object that counts the bytes that are read."""

    count = 0

    def read(self, size=-1, /):
        content = super().read(size)
        self.count += len(content)
        return content


def test_a_seekable_file_at_its_start_is_used_directly():
    given = Counted(CONTENT)
    for _ in range(2):
        with source.opened(given, "a", "video") as file:
            assert file is given
            assert file.count == 0
            file.seek(7)
        assert not given.closed
        assert given.tell() == 0


def test_other_file_objects_are_read_from_their_position():
    given = io.BytesIO(CONTENT)
    given.seek(7)
    assert read(given) == read(given) == CONTENT[7:]
    assert given.tell() == 7
    given = Pipe(CONTENT)
    given.read(7)
    assert read(given) == CONTENT[7:]
    assert not given.closed


def test_a_local_file_is_not_read_ahead(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(CONTENT)
    for given in (path, str(path), path.as_uri()):
        with source.opened(given, "a", "video") as file:
            assert file.name == str(path)
            assert file.read() == CONTENT
        assert file.closed


def test_bytes_and_data_urls_are_read():
    text = base64.b64encode(CONTENT).decode()
    for given in (
        CONTENT,
        bytearray(CONTENT),
        memoryview(CONTENT),
        f"data:video/mp4;base64,{text}",
        f"DATA:;BASE64,{text}",
    ):
        assert read(given) == CONTENT


def closed_file():
    file = io.BytesIO(CONTENT)
    file.close()
    return file


BAD = {
    "missing": ("none.mp4", "image", "^none.mp4: no such file; expected the path of an image file"),
    "no file": (
        7,
        "image",
        r"^image \(int\): expected a path, URL, bytes, binary file, PIL image or NumPy array, got int",
    ),
    "no video": (7, "video", r"^video \(int\): expected .* NumPy array or list of frames, got int"),
    "no sound": (7, "audio", r"^audio \(int\): expected .* NumPy array or \(samples, rate\), got int"),
    "nothing": (b"", "image", r"^image \(bytes\): is empty \(0 bytes\); expected an image file"),
    "data": ("data:image/png,abc", "image", "^image data URL: .* without base64; expected data:image/png;base64"),
    "base64": ("data:;base64,@@", "video", "^video data URL: broken base64"),
    "ftp": ("FTP://example.org/a", "video", "ftp URLs are not fetched; download it first"),
    "keys": ("sftp://key:hidden@host/a?hidden", "video", "^sftp://host/a: sftp URLs are not fetched"),
    "host": ("file://host/a", "video", "host 'host'; expected file:///"),
    "text file": (io.StringIO("hello"), "video", "reads str; open it in binary mode, 'rb'"),
    "closed": (closed_file(), "video", "cannot be read .I/O operation on closed file"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_sources_are_refused(case):
    given, noun, pattern = BAD[case]
    assert "hidden" not in refused(given, pattern, noun=noun)


def test_a_folder_and_a_file_for_writing_are_refused(tmp_path):
    refused(tmp_path, "is a folder; expected an image file", noun="image")
    with open(tmp_path / "a.png", "wb") as file:
        refused(file, f"^{re.escape(file.name)}: cannot be read", noun="image")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a.mp4", "a.mp4"),
        (Path("b") / "a.mp4", os.path.join("b", "a.mp4")),
        ("two\nlines", "two lines"),
        ("x" * 300, "x" * 100 + "..." + "x" * 100),
        ("", "video (str)"),
        (b"abc", "video (bytes)"),
        (io.BytesIO(), "video (BytesIO)"),
        (None, "video (NoneType)"),
        ("data:video/mp4;base64,AAAA", "video data URL"),
        ("https://user:word@host:8/a/b@c.mp4?sign=1#t=2", "https://host:8/a/b@c.mp4"),
        ("https://host?key=a/b", "https://host"),
        ("simplecache::https://user:word@host/a.mp4?sign=1", "simplecache::https://host/a.mp4"),
        ("filecache::file://user:word@host/a.mp4", "filecache::file://host/a.mp4"),
        ("file:///a/b@c?.mp4", "file:///a/b@c?.mp4"),
        ("file:///a?b.mp4", "file:///a?b.mp4"),
        ("C://a?b.mp4", "C://a?b.mp4"),
        ("x" * 1_000_000, "x" * 100 + "..." + "x" * 100),
        ("a?b.mp4", "a?b.mp4"),
    ],
)
def test_names_of_sources_in_messages(given, expected):
    assert source.describe(given, "video") == expected


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


# --- files that are not regular


def test_devices_and_sockets_are_refused(tmp_path):
    (tmp_path / "link").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        for path, expected in {
            "/dev/zero": "^/dev/zero: is a device; expected a video file",
            "file:///dev/urandom": "is a device",
            tmp_path / "link": "link: is a device",
            tmp_path / "socket": "socket: is a socket",
            "/proc/self/mem": "mem: is empty",
            "/proc/self/pagemap": "pagemap: is empty",
            tmp_path: "is a folder",
        }.items():
            refused(path, expected)


def test_a_pipe_without_a_writer_is_given_up(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(local_file, "_NO_WRITER", 0.05)
    refused(tmp_path / "pipe", "pipe: is a pipe that nobody writes to; start its writer first")
    refused((tmp_path / "pipe").as_uri(), "is a pipe that nobody writes to")


@contextlib.contextmanager
def written_to(path, *pieces, wait=0.0):
    """A pipe with a writer that waits before each piece and before it closes."""
    os.mkfifo(path)

    def write():
        with open(path, "wb", 0) as file, contextlib.suppress(BrokenPipeError):
            for piece in pieces:
                time.sleep(wait)
                file.write(piece)
            time.sleep(wait)

    writer = threading.Thread(target=write)
    writer.start()
    yield path
    writer.join()


def test_a_pipe_is_read_whole(tmp_path):
    with written_to(tmp_path / "pipe", CONTENT[:1000], CONTENT[1000:], wait=0.02) as path:
        assert read(path) == CONTENT
    with written_to(tmp_path / "empty") as path:
        refused(path, "is empty")
    reading, writing = os.pipe()  # as a shell's <(command) gives one
    os.write(writing, CONTENT[:1000])
    os.close(writing)
    assert read(f"/dev/fd/{reading}") == CONTENT[:1000]
    os.close(reading)


def test_a_pipe_has_the_bounds_of_a_download(tmp_path):
    with written_to(tmp_path / "large", CONTENT) as path:
        refused(path, "is larger than 1000 bytes", MediaOptions(max_bytes=1000))
    with written_to(tmp_path / "slow", b"RIFF", wait=0.3) as path:
        refused(
            path, "is a pipe that was not closed in 0.1 s; give a file, or raise timeout", MediaOptions(timeout=0.1)
        )
    refused(Pipe(CONTENT), "is larger than 1000 bytes", MediaOptions(max_bytes=1000))


# --- untrusted sources


def test_local_sources_are_refused_without_allow_local(tmp_path, web, store):
    (tmp_path / "a.mp4").write_bytes(CONTENT)
    strangers = MediaOptions(allow_local=False)
    path = tmp_path / "a.mp4"
    for found in (
        path,
        str(path),
        tmp_path / "none.mp4",
        tmp_path,
        "/dev/stdin",
        "C:\\\\a.mp4",
        "simplecache::s3://b/a",
    ):
        refused(found, "a path, which is not read where allow_local is False; give an http", strangers)
    for url in (
        path.as_uri(),
        "FILE:///etc/passwd",
        "memory://bucket/a.wav",
        "gs://b/a",
        "s3://b/a",
        "az://b/a",
        "ftp://b/a",
    ):
        refused(url, "URL, which is not read where allow_local is False; give an http", strangers)
    for options in (strangers, replace(strangers, allow_private=True)):
        message = refused(web.url("good"), "leads to a private address, refused where allow_local is False", options)
        assert "give an http(s) URL of a public address" in message
        assert "allow_private" not in message
    assert not web.seen
    assert read(CONTENT, strangers) == read(io.BytesIO(CONTENT), strangers) == CONTENT
    assert read(f"data:;base64,{base64.b64encode(CONTENT).decode()}", strangers) == CONTENT


def test_public_urls_are_read_without_allow_local_but_private_redirects_are_not(web, as_public):
    strangers = replace(as_public, allow_local=False)
    assert read(web.url("good"), strangers) == CONTENT
    for host, expected in (("127.0.0.2", "private address"), ("[::1]", "private address")):
        target = base64.urlsafe_b64encode(web.url("good", host).encode()).decode()
        refused(web.url(f"to/{target}"), expected, strangers)
    target = base64.urlsafe_b64encode(b"file:///etc/passwd").decode()
    refused(web.url(f"to/{target}"), "neither http nor https", strangers)
