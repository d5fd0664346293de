"""Servers and a store of media on this machine."""

import functools
import ssl

import aiohttp
import fsspec
import pytest

from omni_jax.processing.media import source
from omni_jax.processing.options import MediaOptions
from tests.support.web import CONTENT, PAIR, Server, serve


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


@pytest.fixture
def as_public(monkeypatch):
    """Makes 127.0.0.1 count as public, and leaves every other address as it is."""
    really = source.is_public
    monkeypatch.setattr(source, "is_public", lambda address: address == "127.0.0.1" or really(address))
    return MediaOptions(timeout=20)


@pytest.fixture
def store(monkeypatch):
    """An object store of this process, as gs:// is one of Google's."""
    monkeypatch.setitem(source._STORES, "memory", "memoryfs")
    files = fsspec.filesystem("memory")
    files.pipe("/bucket/a.wav", CONTENT)
    yield
    monkeypatch.undo()  # of the store's own methods too
    files.rm("/bucket", recursive=True)
