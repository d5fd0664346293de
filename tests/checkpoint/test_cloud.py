"""A converted checkpoint at gs://, read over HTTP from a stand-in for Google's servers on this machine."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import jax
import pytest
import tensorstore
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from omni_jax import Omni, checkpoint
from omni_jax.config import from_hf
from omni_jax.errors import RetryableError
from omni_jax.models import parts
from omni_jax.models.memory_layout import to_canonical
from tests.support.trees import same

NAME = re.compile(r"/storage/v1/b/bucket/o(?:/(?P<key>[^?]+))?")


@pytest.fixture(scope="module")
def bucket(tiny, tmp_path_factory):
    """A folder whose files are the objects of gs://bucket, and the ranges that were read from them: [key, bytes]."""
    folder, read = tmp_path_factory.mktemp("bucket"), []
    checkpoint.convert(tiny, folder / "models" / "tiny")

    class Storage(BaseHTTPRequestHandler):
        """The part of Google Cloud Storage's JSON API that reading needs."""

        protocol_version = "HTTP/1.1"
        wbufsize = -1  # otherwise each answer waits for the other side to acknowledge its first line

        def do_GET(self):
            url = urlsplit(self.path)
            key = NAME.fullmatch(url.path)["key"]
            if key is None:
                (prefix,) = parse_qs(url.query).get("prefix", [""])
                keys = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
                items = [{"name": key} for key in sorted(keys) if key.startswith(prefix)]
                return self.answer(200, json.dumps({"items": items}).encode())
            path = folder / unquote(key)
            if not path.is_file():
                return self.answer(404, b"{}")
            data = path.read_bytes()
            span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if span is None:
                part, end = data, len(data)
                start = 0
            else:
                start, end = int(span[1]), min(int(span[2] or len(data)) + 1, len(data))
                part = data[start:end]
            read.append((unquote(key), len(part)))
            headers = {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"} if span else {}
            return self.answer(206 if span else 200, part, {"x-goog-generation": "1", **headers})

        def answer(self, code, body, headers=()):
            self.send_response(code)
            for name, value in {"Content-Length": str(len(body)), **dict(headers)}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("localhost", 0), Storage)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://localhost:{server.server_port}")
        patch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "none")
        yield folder, read
    server.shutdown()
    server.server_close()


def test_a_remote_checkpoint_loads_onto_a_mesh(bucket, loaded):
    _, read = bucket
    folder = checkpoint.nearby("gs://bucket/models/tiny")
    assert not (folder / "weights").exists()
    config = from_hf(folder)
    same(checkpoint.load("gs://bucket/models/tiny", config), loaded)
    mesh = jax.make_mesh((4,), ("expert",), axis_types=(AxisType.Auto,))
    where = {
        path: NamedSharding(mesh, PartitionSpec(None, "expert")) for path in parts.leaves(loaded) if ".experts." in path
    }
    before = len(read)
    made = checkpoint.load(folder, config, shardings=where)
    same(made, loaded)
    assert all(parts.leaves(made)[path].sharding.is_equivalent_to(where[path], 4) for path in where)
    assert all("/weights/" in key for key, _ in read[before:])


def test_omni_loads_from_an_address(bucket, loaded):
    omni = Omni.load("gs://bucket/models/tiny")
    same(to_canonical(omni.parts), loaded)
    assert omni.tokenizer.encode("Hello")


@pytest.mark.parametrize("status", ["UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED"])
def test_a_store_that_does_not_answer_is_retryable(bucket, monkeypatch, status):
    """TensorStore raises ValueErrors for it; a load must not call the weights damaged."""
    config = from_hf(checkpoint.nearby("gs://bucket/models/tiny"))

    def fail(*_, **__):
        raise ValueError(f"{status}: Error reading gs://bucket")

    monkeypatch.setattr(tensorstore, "open", fail)
    with pytest.raises(RetryableError, match=rf"^gs://bucket/models/tiny/weights/\S+: cannot be read now \({status}"):
        checkpoint.load("gs://bucket/models/tiny", config)


def test_missing_remote_checkpoints_raise_one_line(bucket):
    folder, _ = bucket
    with pytest.raises(
        ValueError, match=r"gs://bucket/nothing: expected a converted checkpoint, found no omni_jax\.json"
    ):
        checkpoint.nearby("gs://bucket/nothing")
    config = from_hf(checkpoint.nearby("gs://bucket/models/tiny"))
    lost = folder / "models" / "tiny" / "weights" / "thinker.002"
    lost.rename(folder / "lost")
    try:
        with pytest.raises(ValueError, match=r"gs://bucket/models/tiny/weights/thinker\.002: damaged"):
            checkpoint.load("gs://bucket/models/tiny", config)
    finally:
        (folder / "lost").rename(lost)
    with pytest.raises(ValueError, match="nowhere://bucket: cannot be read"):
        checkpoint.nearby("nowhere://bucket")
