"""Addresses of media. Nothing leaves the machine: this module resolves the names, and no connection is made."""

import os
import random
import re
import socket
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from omni_jax.processing.media.source import describe, is_public, opened
from omni_jax.processing.options import MediaOptions

from .cases import BrokenPromiseError, Case
from .mutations import TEXTS, damaged

SECRET = "a secret of this machine"
HOSTS = [
    "example.com", "127.0.0.1", "localhost", "0x7f.1", "2130706433", "017700000001", "[::1]", "[::ffff:10.0.0.1]",
    "169.254.169.254", "[64:ff9b::a00:1]", "metadata.google.internal", "10.0.0.1.nip.io", "0", "0.0.0.0", "[::]",
    "8.8.8.8", "[2002:a00:1::]", "[fe80::1%25lo]", "user:pass@10.0.0.1", "example.com:80@10.0.0.1",
    "example.com#@10.0.0.1", "ⓛocalhost", "\uff11\uff12\uff17.0.0.1", "xn--", "a" * 300, "", ".", "-", "224.0.0.1",
    "192.168.1.1:99999", "[::1", "example.com:x", "EXAMPLE.com.", "100.64.0.1", "198.18.0.1", "[fc00::1]", "[100::1]",
]  # fmt: skip
SCHEMES = [
    "http", "https", "HTTP", "file", "FILE", "ftp", "data", "gs", "s3", "az", "gopher", "jar:file", "http:http", "ws",
    "javascript", "zip", "simplecache::http", "filecache::file", "memory", "github", "hf", "dask", "sftp",
    "reference", "local", "",
]  # fmt: skip
PLACES = [
    "/dev/null", "/dev/zero", "/dev/full", "/dev/tty", "/proc/self/mem", "/proc/self/environ", "/", ".", "~",
    "/proc/kmsg", "/dev/stdin",
]  # fmt: skip
ANSWERS = [
    "93.184.215.14",
    "127.0.0.1",
    "10.1.2.3",
    "::1",
    "fd00::1",
    "64:ff9b::7f00:1",
    "169.254.169.254",
    "2606:2800:21f::1",
    "0.0.0.0",
]


class _Wire:
    """The network's requests of a case, and its answers."""

    def __init__(self):
        self.answers: list[str] = []
        self.reached: list[str] = []
        self.opened: list[str] = []

    def look_up(self, host: Any, port: Any, *_: Any, **__: Any) -> list[Any]:
        try:
            found = [str(ip_address(host))]  # a number needs no look-up
        except ValueError:
            found = self.answers
        families = {4: socket.AF_INET, 6: socket.AF_INET6}
        place = {4: lambda ip: (ip, int(port or 0)), 6: lambda ip: (ip, int(port or 0), 0, 0)}
        versions = [(ip, ip_address(ip).version) for ip in found]
        return [(families[v], socket.SOCK_STREAM, 6, "", place[v](ip)) for ip, v in versions]

    def watch(self, event: str, arguments: tuple) -> None:
        if event == "open" and isinstance(arguments[0], str | bytes):
            self.opened.append(os.fsdecode(arguments[0]))
        if event == "socket.connect" and isinstance(arguments[1], tuple):
            self.reached.append(str(arguments[1][0]))
            raise ConnectionRefusedError(111, "no network here")


def prepare(folder: Path) -> Any:
    wire = _Wire()
    socket.getaddrinfo = wire.look_up
    sys.addaudithook(wire.watch)
    secret = folder / "secret.txt"
    secret.write_text(SECRET)
    if not (folder / "fifo").exists():
        os.mkfifo(folder / "fifo")
    return wire, secret


def case(draw: random.Random, held: Any) -> Case:
    wire, secret = held
    address, noun = _address(draw, secret), draw.choice(["audio", "image", "video"])
    private, local = draw.choice([(False, False), (False, True), (True, True)])
    options = MediaOptions(timeout=5, max_bytes=draw.choice([1, 10**6]), allow_private=private, allow_local=local)
    answers = draw.sample(ANSWERS, draw.choice([1, 1, 2]))

    def run() -> None:
        wire.answers, wire.reached, wire.opened = answers, [], []
        name = describe(address, noun)
        url = re.search(r"[a-z]{2}://", address, re.IGNORECASE)
        if len(name.splitlines()) > 1 or (url and not address.lower().lstrip().startswith("file:") and "pass" in name):
            raise BrokenPromiseError(f"a source is called {name!r}")
        try:
            with opened(address, name, noun, options) as file:
                file.read()
        finally:
            if not private and (inside := [ip for ip in wire.reached if not is_public(ip)]):
                raise BrokenPromiseError(f"reaches {', '.join(inside)}, which is private")
            if not local and (opened_here := [path for path in wire.opened if path in (address, str(secret), *PLACES)]):
                raise BrokenPromiseError(f"opens {', '.join(opened_here)}, which is local")

    allowed = f"{', private too' if private else ''}{', local too' if local else ''}"
    return Case(f"{address[:200]!r}, looked up as {answers}{allowed}", run)


def _address(draw: random.Random, secret: Path) -> str:
    scheme, host = draw.choice(SCHEMES), draw.choice(HOSTS)
    tail = draw.choice(
        [
            "/a.wav",
            "",
            "/",
            f"{secret}",
            "/%2e%2e/x",
            "/?token=secret",
            "/a b\n",
            "/\0",
            "/é",
            "#x",
            f"/{'a' * 70_000}",
            "\\x",
        ]
    )
    address = draw.choice(
        [
            f"{scheme}://{host}{tail}",
            f"{scheme}://{host}{tail}",
            f"{scheme}:{host}{tail}",
            f" {scheme}://{host}{tail}",
            f"data:{draw.choice(['audio/wav', '', ';', 'x' * 1000])};base64,{draw.choice(TEXTS)}",
            f"data:,{draw.choice(TEXTS)}",
            f"file://{draw.choice(['', 'localhost', host])}{secret}",
            f"{secret}{draw.choice(['', '/', '/..', chr(0), 'x' * 5000])}",
            draw.choice([*PLACES, str(secret.parent / "fifo")]),
            draw.choice([*PLACES, f"file://{secret.parent}/fifo"]),
        ]
    )
    if draw.random() < 0.2:
        address = damaged(address.encode(errors="surrogatepass"), draw)[0].decode(errors="surrogateescape")
    return address
