"""Sources of media: a path, a URL, bytes or a file object, each opened as a seekable binary file."""

import asyncio
import base64
import binascii
import contextlib
import http.client
import io
import ipaddress
import os
import re
import socket
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future, InvalidStateError, wait
from typing import Any, BinaryIO, cast
from urllib.parse import unquote
from urllib.request import url2pathname

from omni_jax.errors import RetryableError, UserError, cut, kind_of, shown
from omni_jax.processing.media.local_file import RefusedError, open_path, read_all, require_bytes
from omni_jax.processing.options import MediaOptions

DEFAULTS = MediaOptions()
MediaSource = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO

# What messages expect of each noun: a file, what else a user may give, and the media type in a data URL.
_EXPECTED = {
    "audio": ("a sound file", "NumPy array or (samples, rate)", "audio/wav"),
    "image": ("an image file", "PIL image or NumPy array", "image/png"),
    "video": ("a video file", "NumPy array or list of frames", "video/mp4"),
}
_URL = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)  # two letters or more: C:// is a drive
_DATA_URL = re.compile(r"data:[^,]*;base64,", re.IGNORECASE)
_SECRETS = re.compile(r"(?<=://)[^/?#]*@|[?#].*", re.DOTALL)  # a URL's user and password; its query, often signed
_IN_MEMORY = 64 << 20  # bytes of a download kept in memory; a longer one goes to disk
_CHUNK = 1 << 20
_REDIRECTS = 5
_BUSY = (408, 425, 429)  # a server's answers below 500 after which the same request may succeed later
_UNKNOWN_NAME = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))
_REMOTE = "an http(s) URL of a public address, a data: URL or the file's content"
# Object stores, read with the rights of this process, as local paths are.
_STORES = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "abfs": "adlfs", "az": "adlfs"}
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # IPv4 addresses as IPv6-only networks show them


def describe(source: Any, noun: str) -> str:
    """The name of a source in messages: its path or URL, shortened and in one line, or its kind.

    Args:
        source: As a user gave it.
        noun: "audio", "image" or "video".

    Returns:
        A path, a URL without user, password, query and fragment, "audio data URL", or "image (bytes)".
    """
    if isinstance(source, str) and source[:5].lower() == "data:":
        return f"{noun} data URL"
    path = getattr(source, "name", None) if hasattr(source, "read") else source
    if not isinstance(path, (str, os.PathLike)) or not path:
        return f"{noun} ({type(source).__name__})"
    text = " ".join(os.fsdecode(path).split())
    before, mark, _ = text.partition("://")
    scheme = re.split(r"[^a-z0-9+.-]", before.lower())[-1]  # also behind an unknown scheme: simplecache::https://
    if mark and len(scheme) > 1 and before.lower() != "file":
        text = _SECRETS.sub("", text)
    return text if len(text) <= 200 else f"{text[:100]}...{text[-100:]}"


def reason(error: BaseException) -> str:
    """A library's own message, in one line, without its prefix, number and full stop."""
    words = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
    return " ".join(words.split()).rstrip(".")


@contextlib.contextmanager
def opened(source: Any, name: str, noun: str, options: MediaOptions = DEFAULTS) -> Iterator[BinaryIO]:
    """Opens a source as a seekable binary file that stands at its start; a context manager.

    A URL is downloaded once, into memory or, beyond 64 MB, onto disk. A user's file object is read from its current
    position and left open. If it can seek and stands at its start, it is not copied, and its position is restored.

    Args:
        source: A path, a `file://`, `http(s)://`, `gs://`, `s3://`, `az://` or base64 `data:` URL, a file's bytes, or a
            binary file object.
        name: What messages call the source.
        noun: "audio", "image" or "video".
        options: The bounds of what is copied (a download, an object or a pipe): max_bytes and timeout; and what may be
            read: allow_private and allow_local.

    Raises:
        ValueError: in one line, when the source cannot be found or read, is not allowed, or is empty.
        RetryableError: in one line, when its server, its store or the file system does not answer.
    """
    own = _borrowed(source, name, options) if hasattr(source, "read") else _open(source, name, noun, options)
    with own as file:
        if not file.seek(0, os.SEEK_END):
            raise ValueError(f"{name}: is empty (0 bytes); expected {_EXPECTED[noun][0]}")
        file.seek(0)
        yield file


@contextlib.contextmanager
def _borrowed(source: Any, name: str, options: MediaOptions) -> Iterator[BinaryIO]:
    """A user's file object itself if it is a seekable file at its start, else a copy of the rest of it."""
    try:
        start = source.tell() if hasattr(source, "seekable") and source.seekable() else None
        if not isinstance(nothing := source.read(0), bytes):
            kind = type(nothing).__name__
            raise RefusedError(f"a file object that reads {kind}; open it in binary mode, 'rb'")
        file = source if start == 0 else io.BytesIO(read_all(source.read, options))
    except RefusedError as error:
        raise error.named(name) from None
    except (OSError, ValueError) as error:  # ValueError: the file is closed
        raise kind_of(error)(f"{name}: cannot be read ({reason(error)})") from None
    try:
        yield file
    finally:
        if start is not None:
            source.seek(start)


def _open(source: Any, name: str, noun: str, options: MediaOptions) -> BinaryIO:
    """Opens a path, URL or bytes as a seekable binary file."""
    wanted, others, media_type = _EXPECTED[noun]
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source)
    if isinstance(source, str) and source[:5].lower() == "data:":
        return io.BytesIO(_decode_data_url(source, name, media_type))
    if isinstance(source, str) and (url := _URL.match(source)):
        if (scheme := url[1].lower()) in ("http", "https"):
            return _fetch(source, name, options)
        if not options.allow_local:
            raise ValueError(
                f"{name}: a {cut(scheme)} URL, which is not read where allow_local is False; give {_REMOTE}"
            )
        if scheme in _STORES:
            return _stored(source, scheme, name, options)
        if scheme != "file":
            raise ValueError(f"{name}: {cut(scheme)} URLs are not fetched; download it first and give the file's path")
        source = _local_path(source[url.end() :], name)
    if not isinstance(source, (str, os.PathLike)):
        raise ValueError(f"{name}: expected a path, URL, bytes, binary file, {others}, got {type(source).__name__}")
    if not options.allow_local:
        raise ValueError(f"{name}: a path, which is not read where allow_local is False; give {_REMOTE}")
    try:
        return open_path(source, wanted, options)
    except RefusedError as error:
        raise error.named(name) from None


def _decode_data_url(url: str, name: str, media_type: str) -> bytes:
    if not (head := _DATA_URL.match(url)):
        raise ValueError(f"{name}: a data URL without base64; expected data:{media_type};base64,...")
    try:
        return base64.b64decode(unquote(url[head.end() :]), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{name}: broken base64 ({error})") from None


def _local_path(rest: str, name: str) -> str:
    """The path of a file URL; `rest` is what follows file://."""
    host, _, path = rest.partition("/")
    if host not in ("", "localhost"):
        raise ValueError(f"{name}: a file URL with the host {shown(host)}; expected file:/// and an absolute path")
    return url2pathname(f"/{path}")


def _stored(url: str, scheme: str, name: str, options: MediaOptions) -> BinaryIO:
    """Copies an object of a store, with the package for that store."""
    from fsspec.core import url_to_fs

    try:
        store, path = url_to_fs(url)
        return _copy(store, path, options)
    except RefusedError as error:
        fault = error
    except ImportError:
        fault = RefusedError(f"{scheme} URLs need {_STORES[scheme]}; pip install {_STORES[scheme]}")
    except FileNotFoundError:
        fault = RefusedError("no such object; check the URL")
    except Exception as error:  # packages of stores raise their own kinds of errors
        fault = RefusedError(f"cannot be read ({reason(error)})", kind_of(error))
    raise fault.named(name) from None


def _copy(store: Any, path: str, options: MediaOptions) -> BinaryIO:
    """Copies an object of a store, within the options' bounds.

    In a thread, because a store that does not answer can only be abandoned: the thread ends when the store answers, or
    with the process.
    """
    copied: Future[BinaryIO] = Future()

    def copy():
        file = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115 - the receiver closes it
        try:
            require_bytes(store.info(path).get("size") or 0, options)
            with store.open(path, "rb") as content:
                while not copied.cancelled() and (chunk := content.read(_CHUNK)):
                    file.write(chunk)
                    require_bytes(file.tell(), options)
            copied.set_result(cast(BinaryIO, file))
        except BaseException as error:
            file.close()
            with contextlib.suppress(InvalidStateError):  # nobody waits any more
                copied.set_exception(error)

    threading.Thread(target=copy, name=f"omni_jax {path}", daemon=True).start()
    try:
        wait([copied], min(options.timeout, threading.TIMEOUT_MAX))
    finally:
        late = copied.cancel()
    if late:
        raise _late(options)
    return copied.result()


def _late(options: MediaOptions) -> RefusedError:
    words = f"could not be fetched in {options.timeout:g} s; download it first, or raise timeout"
    return RefusedError(words, RetryableError)


def _fetch(url: str, name: str, options: MediaOptions) -> BinaryIO:
    """Downloads an http(s) URL."""
    from fsspec.asyn import get_loop, sync  # here, because only a URL needs it

    file = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115 - the caller closes it
    try:
        # fsspec's loop runs in its own thread, so this works under a running loop, as in notebooks.
        sync(get_loop(), _download, url, file, name, options)
    except BaseException:
        file.close()
        raise
    return cast(BinaryIO, file)


class _PrivateError(OSError):
    """A refused address; an OSError, so that a host's other addresses are tried, as after an unreachable one."""


async def _download(url: str, file: Any, name: str, options: MediaOptions):
    """Streams a URL into a file, within the options' bounds."""
    import aiohttp
    from fsspec.callbacks import Callback
    from fsspec.implementations.http import HTTPFileSystem

    secure = False

    async def stay_secure(request, handler):
        nonlocal secure
        if secure and request.url.scheme != "https":
            raise RefusedError("is redirected from https to http, which anyone on the way can read; refused")
        secure = request.url.scheme == "https"
        return await handler(request)

    async def require_success(response):
        if response.status // 100 != 2:
            response.close()
            phrase = http.client.responses.get(response.status, "unknown")
            kind = RetryableError if response.status in _BUSY or response.status >= 500 else UserError
            raise RefusedError(f"the server answers {response.status} ({phrase}); check the URL", kind)

    def bound(size, value):
        require_bytes(max(size or 0, value), options)

    def connect(address_info):
        family, kind, protocol, _, address = address_info
        if not (options.allow_private and options.allow_local) and not is_public(address[0]):
            raise _PrivateError("a private address")
        return socket.socket(family, kind, protocol)

    try:
        async with (
            asyncio.timeout(options.timeout),  # of the whole download; aiohttp's own bounds are for each wait
            aiohttp.ClientSession(
                # Checked where a socket is made: also covers redirects, odd spellings and names that change address.
                connector=aiohttp.TCPConnector(socket_factory=connect, force_close=True),
                trust_env=False,  # behind a proxy, the checked address would be the proxy's, not the requested one
                timeout=aiohttp.ClientTimeout(),
                headers={"Accept-Encoding": "identity", "User-Agent": "omni-jax"},  # media are compressed already
                middlewares=(stay_secure,),
                raise_for_status=require_success,
            ) as session,
        ):

            async def get_client(**_):
                return session

            files = HTTPFileSystem(asynchronous=True, skip_instance_cache=True, get_client=get_client)
            callback = cast(Any, Callback(hooks={"bound": bound}))  # fsspec annotates it as NoOpCallback
            # aiohttp also counts the redirect that it no longer follows.
            await files._get_file(url, file, callback=callback, max_redirects=_REDIRECTS + 1)
    except (RefusedError, aiohttp.ClientError, OSError, ValueError) as error:
        raise _fault(error, options).named(name) from None


def _fault(error: Exception, options: MediaOptions) -> RefusedError:
    """What went wrong with a download, in our words: libraries' messages may hold the whole URL, with secrets."""
    import aiohttp

    match error:
        case RefusedError():
            return error
        case TimeoutError():
            return _late(options)
        case aiohttp.TooManyRedirects():
            return RefusedError(f"is redirected more than {_REDIRECTS} times")
        case aiohttp.NonHttpUrlRedirectClientError():
            return RefusedError("is redirected to something that is neither http nor https; refused")
        case aiohttp.ClientSSLError():
            cause = error.__cause__
            words = getattr(cause, "verify_message", None) or getattr(cause, "reason", None) or "TLS fails"
            return RefusedError(f"no secure connection to its host ({words})")
        case aiohttp.ClientConnectorError(os_error=_PrivateError()):
            if not options.allow_local:
                return RefusedError(f"leads to a private address, refused where allow_local is False; give {_REMOTE}")
            return RefusedError("leads to a private address, refused unless allow_private is True")
        case aiohttp.ClientConnectorDNSError():
            # A name server that does not answer is not one that does not know the name.
            kind = UserError if error.os_error.errno in _UNKNOWN_NAME else RetryableError
            return RefusedError(f"its host is not found ({reason(error.os_error)})", kind)
        case aiohttp.ClientPayloadError():
            return RefusedError("the download broke off before its end, or is garbled; try again", RetryableError)
        case aiohttp.ClientResponseError():
            return RefusedError("its server does not answer in proper HTTP")
        case aiohttp.ClientConnectorError():
            return RefusedError(f"no connection to its host ({reason(error.os_error)})", RetryableError)
        case ValueError():
            return RefusedError("is not a valid URL, or is redirected to one that is not")
        case _:
            words = f"could not be fetched ({getattr(error, 'strerror', None) or type(error).__name__})"
            return RefusedError(words, kind_of(error))


def is_public(address: str) -> bool:
    """Whether an IP address, and one that it embeds, belongs to the public internet.

    Loopback, private, link-local, multicast, reserved and unspecified addresses do not, nor do strings that are no
    address.
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        embedded = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF) if ip in _NAT64 else None
        ip = ip.ipv4_mapped or ip.sixtofour or embedded or ip
    outside = ip.is_multicast or ip.is_reserved or getattr(ip, "is_site_local", False)
    return ip.is_global and not outside
