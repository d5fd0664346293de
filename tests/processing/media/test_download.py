"""Downloads and objects of stores stay within bounds of size and time. Nothing leaves this machine."""

import asyncio
import base64
import contextlib
import gc
import io
import os
import socket
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import aiohttp
import fsspec
import pytest

from omni_jax.errors import RetryableError, UserError
from omni_jax.processing.media import source
from omni_jax.processing.options import MediaOptions
from tests.support.web import CONTENT, LOCAL, name_server, read, refused


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
    [
        (404, "Not Found"), (403, "Forbidden"), (500, "Internal Server Error"), (302, "Found"), (599, "unknown"),
        (429, "Too Many Requests"), (503, "Service Unavailable"),
    ],
)  # fmt: skip
def test_http_errors_are_reported(web, status, words):
    kind = RetryableError if status in (429, 500, 503, 599) else UserError
    refused(web.url(f"status/{status}"), rf"/status/{status}: the server answers {status} \({words}\)", kind=kind)


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
    kind = RetryableError if "broke off" in FAULTS[path] else UserError
    message = refused(url, f"^http://127.0.0.1:{web.server_port}/{path}: .*{FAULTS[path]}", kind=kind)
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
    with contextlib.suppress(UserError, RetryableError):
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
    late = r"could not be fetched in 0\.3 s; download it first, or raise timeout"
    refused(web.url(path), late, options, kind=RetryableError)


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
    refused(url, f"^{late}$", MediaOptions(timeout=0.2), kind=RetryableError)  # it arrives too slowly
    monkeypatch.setattr(files, "info", lambda self, path: {"size": answer.wait(20)})
    refused(url, f"^{late}$", MediaOptions(timeout=0.2), kind=RetryableError)  # the store does not answer
    answer.set()
    left = [thread for thread in threading.enumerate() if thread.name.startswith("omni_jax")]
    for thread in left:
        thread.join(20)
        assert not thread.is_alive()

    def slow(self, path):
        raise TimeoutError("no answer from the store's host")

    monkeypatch.setattr(files, "info", slow)
    refused(url, "cannot be read .no answer from the store's host.$", kind=RetryableError)

    def forbidden(self, path):
        raise PermissionError("not yours")

    monkeypatch.setattr(files, "info", forbidden)
    refused(url, "cannot be read .not yours.$")


def test_unreachable_hosts_are_reported(web, monkeypatch):
    name_server(monkeypatch, [])
    refused(web.url("good", "name.test"), r"its host is not found \(Name or service not known\)")
    name_server(monkeypatch, [], fault=socket.EAI_AGAIN)
    refused(web.url("good", "name.test"), "its host is not found", kind=RetryableError)
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unheard.getsockname()[1]}/a.mp4"
        refused(url, "no connection to its host", kind=RetryableError)


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
        for path in ("status/404", "loop"):
            refused(web.url(path), ".")
        for path in ("long", "garbage"):
            refused(web.url(path), ".", kind=RetryableError)
        refused(web.url("silent"), "0.1 s", MediaOptions(allow_private=True, timeout=0.1), kind=RetryableError)
        refused(web.url("endless"), "larger", MediaOptions(allow_private=True, max_bytes=1000))
        refused(web.url("good"), "private", MediaOptions())
        gc.collect()
    assert not caught
    assert not caplog.records  # aiohttp logs sessions that nobody closed
