"""Private addresses and local files are refused where they may not be read. Nothing leaves this machine."""

import base64
import io
from dataclasses import replace

import pytest

from omni_jax.processing.media import source
from omni_jax.processing.options import MediaOptions
from tests.support.web import CONTENT, name_server, read, refused

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


@pytest.mark.parametrize("host", ["127.0.0.2", "[::ffff:7f00:2]", "[::1]", "169.254.169.254"])
def test_a_redirect_to_a_private_address_is_refused(web, as_public, host):
    target = base64.urlsafe_b64encode(web.url("good", host).encode()).decode()
    refused(web.url(f"to/{target}"), "leads to a private address", as_public)
    assert len(web.seen) == 1


@pytest.mark.parametrize(
    "target",
    ["file:///etc/passwd", "ftp://example.org/a", "data:text/plain,hello", "gopher://127.0.0.1", "javascript:0"],
)
def test_a_redirect_to_another_scheme_is_refused(web, target):
    path = f"to/{base64.urlsafe_b64encode(target.encode()).decode()}"
    refused(web.url(path), "is redirected to something that is neither http nor https; refused")


def test_a_name_is_checked_by_the_address_of_its_connection(web, as_public, monkeypatch):
    name_server(monkeypatch, ["127.0.0.1"], ["127.0.0.2"])
    assert read(web.url("good", "name.test"), as_public) == CONTENT
    refused(web.url("good", "name.test"), "leads to a private address", as_public)
    name_server(monkeypatch, ["10.0.0.1", "127.0.0.2", "192.168.0.1"])
    refused(web.url("good", "name.test"), "leads to a private address", as_public)
    name_server(monkeypatch, ["10.0.0.1", "127.0.0.1"])
    assert read(web.url("good", "name.test"), as_public) == CONTENT


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
