"""Sources of media on this machine: files, pipes, bytes and data URLs give their bytes, and messages name them."""

import base64
import contextlib
import io
import os
import re
import socket
import threading
import time
from pathlib import Path

import pytest

from omni_jax.processing.media import local_file, source
from omni_jax.processing.options import MediaOptions
from tests.support.web import CONTENT, read, refused


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
