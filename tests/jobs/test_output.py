"""The output of a job: written lines are kept, unfinished ones are cut off, and foreign files are not changed."""

import bz2
import gzip
import io
import json
import lzma
import os
import sys
import zipfile
from contextlib import suppress

import aiohttp
import fsspec
import pytest

from omni_jax.errors import RetryableError, UserError
from omni_jax.jobs import output as module
from omni_jax.jobs.input import lines_of
from omni_jax.jobs.output import JobOutput


def answer(number, **content):
    return number, f"sum{number}", content or {"text": f"reply {number}"}


def numbers(path):
    return [json.loads(line)["line"] for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def bucket():
    """An object store, which cannot append."""
    name = f"memory://{os.urandom(6).hex()}"
    yield name
    fsspec.filesystem("memory").rm(name, recursive=True)


def test_lines_are_on_disk_when_write_returns(tmp_path):
    path = tmp_path / "out.jsonl"
    with JobOutput(str(path)) as output:
        output.write([answer(3), answer(1, text="schön", id="x")])
        assert numbers(path) == [3, 1]
        assert json.loads(path.read_text(encoding="utf-8").splitlines()[1]) == {
            "line": 1, "text": "schön", "id": "x", "of": "sum1",
        }  # fmt: skip
    with JobOutput(str(path)) as output:
        assert {number: entry.checksum for number, entry in output.entries.items()} == {3: "sum3", 1: "sum1"}
        output.write([answer(2)])
        output.merge([1, 2, 3])
    assert numbers(path) == [1, 2, 3]
    assert sorted(item.name for item in tmp_path.iterdir()) == ["out.jsonl"]


@pytest.mark.parametrize("left", [1, 5, 9, 30])
def test_an_unfinished_line_is_cut_off(tmp_path, left):
    """Wherever a line ends early, the lines before it are kept and the next one is written on a new line."""
    path = tmp_path / "out.jsonl"
    with JobOutput(str(path)) as output:
        output.write([answer(1), answer(2)])
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"line": 3, "text": "never finished'[:left])
    with JobOutput(str(path)) as output:
        assert sorted(output.entries) == [1, 2]
        assert path.read_bytes() == whole
        output.write([answer(3)])
    assert numbers(path) == [1, 2, 3]


FOREIGN = [
    "precious\n", "precious", '{"line": 1}\n', "[1]\n", '{"line": "x", "of": ""}\n', '{"line": true, "of": "a"}\n',
    '{"line": 1, "of": 3}\n', '{"line": 1, "of": "a", "tokens": 5}\n', '{"line": 1, "of": "a", "tokens": "abc"}\n',
    '{"line": 1, "of": "a", "speech": 5}\n', '{"line": 1, "of": "a", "speech": {"seconds": "x"}}\n',
    '{"line": 1, "of": "a", "speech": {"seconds": NaN}}\n', '{"line": 1, "of": "a", "speech": {"seconds": -1}}\n',
    '{"line": 1, "of": "a", "speech": {"seconds": 1' + "0" * 400 + "}}\n", '{"line": ' + "[" * 100_000 + "\n",
]  # fmt: skip


@pytest.mark.parametrize("content", FOREIGN, ids=range(len(FOREIGN)))
def test_a_foreign_file_is_refused_and_left_unchanged(tmp_path, content):
    path = tmp_path / "out.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match="another name"):
        JobOutput(str(path))
    assert path.read_text() == content
    path.write_text("")
    JobOutput(str(path)).__exit__(None)  # the failed job does not hold the lock any more


def test_a_second_job_on_the_same_output_is_refused(tmp_path):
    with JobOutput(str(tmp_path / "out.jsonl")), pytest.raises(ValueError, match="another job is writing it"):
        JobOutput(str(tmp_path / "out.jsonl"))
    JobOutput(str(tmp_path / "out.jsonl"))


def test_impossible_targets_are_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no folder"):
        JobOutput(str(tmp_path / "nowhere" / "out.jsonl"))
    with pytest.raises(ValueError, match="got a folder"):
        JobOutput(str(tmp_path))
    with pytest.raises(ValueError, match="nosuch"):
        JobOutput("nosuch://bucket/out.jsonl")


def test_a_full_disk_leaves_no_unfinished_line(tmp_path, monkeypatch):
    path, write = tmp_path / "out.jsonl", os.write
    with JobOutput(str(path)) as output:
        output.write([answer(1)])
        whole = path.read_bytes()

        def fill(file, content):
            if len(content) < 20:
                raise OSError(28, "No space left on device")
            return write(file, content[:20])

        monkeypatch.setattr(os, "write", fill)
        with pytest.raises(OSError, match="No space"):
            output.write([answer(2)])
    assert path.read_bytes() == whole


def test_a_sound_file_gets_its_name_when_complete(tmp_path):
    with JobOutput(str(tmp_path / "out.jsonl")) as output:
        assert output.put("00000001.wav", b"RIFF") == "out.sound/00000001.wav"
        (tmp_path / "out.sound" / "00000002.wav.part").write_bytes(b"torn by a kill")
        output.put("00000002.wav", b"RIFF")
    assert {item.name: item.read_bytes() for item in (tmp_path / "out.sound").iterdir()} == {
        "00000001.wav": b"RIFF", "00000002.wav": b"RIFF",
    }  # fmt: skip


def test_several_processes_write_parts_and_the_first_joins_them(tmp_path):
    path = tmp_path / "out.jsonl"
    with JobOutput(str(path), process=0, processes=2) as first, JobOutput(str(path), process=1, processes=2) as second:
        first.write([answer(2)])
        second.write([answer(3), answer(1)])
        assert not path.exists()
        with pytest.raises(
            ValueError, match="1 lines of other processes are not to be seen from here, the first is line 4"
        ):
            first.merge([1, 2, 3, 4])
        first.merge([1, 2, 3])
        assert numbers(path) == [1, 2, 3]
        assert not (tmp_path / "out.jsonl.parts").exists()


def test_a_job_resumes_with_another_number_of_processes(tmp_path):
    path = tmp_path / "out.jsonl"
    with JobOutput(str(path), process=1, processes=2) as output:
        output.write([answer(1)])
    part = tmp_path / "out.jsonl.parts" / "00001-of-00002.jsonl"
    part.write_bytes(part.read_bytes() + b'{"line": 3, "te')
    with JobOutput(str(path)) as output:
        assert list(output.entries) == [1]
        output.write([answer(2), answer(3)])
        output.merge([1, 2, 3])
    assert numbers(path) == [1, 2, 3]


def test_an_object_store_has_an_object_for_each_flush(bucket, monkeypatch):
    target = f"{bucket}/out.jsonl"
    files = fsspec.filesystem("memory")
    parts = f"{bucket}/out.jsonl.parts"
    output = JobOutput(target)
    output.write([answer(3)])
    assert not files.exists(parts)
    assert output.put("00000003.wav", b"RIFF") == "out.sound/00000003.wav"
    monkeypatch.setattr(module, "FLUSH_SECONDS", -1)
    output.write([])  # as time passes
    monkeypatch.undo()
    assert len(files.ls(parts)) == 1
    output.write([answer(4)])  # lost, because the process was killed
    with suppress(KeyboardInterrupt), JobOutput(target) as output:
        assert list(output.entries) == [3]
        output.write([answer(1)])
        raise KeyboardInterrupt
    with JobOutput(target) as output:
        assert sorted(output.entries) == [1, 3]
        monkeypatch.setattr(module, "FLUSH_BYTES", 10)
        output.write([answer(2)])
        assert len(files.ls(parts)) == 3
        output.merge([1, 2, 3])
    assert [json.loads(line)["line"] for line in files.cat_file(target).splitlines()] == [1, 2, 3]
    assert not files.exists(parts)
    assert files.cat_file(f"{bucket}/out.sound/00000003.wav") == b"RIFF"
    assert sorted(JobOutput(target).entries) == [1, 2, 3]


def test_an_answer_replaces_an_error(tmp_path):
    path = tmp_path / "out.jsonl"
    with JobOutput(str(path)) as output:
        output.write([answer(1, error="no such file"), answer(2, error="broken")])
        output.write([answer(1), answer(2, error="still broken")])
    with JobOutput(str(path)) as output:
        output.merge([1, 2])
        assert {number: entry.fault for number, entry in output.entries.items()} == {1: False, 2: True}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert [(line["line"], line.get("error")) for line in lines] == [(1, None), (2, "still broken")]


def test_long_answers_are_not_kept_in_memory(tmp_path):
    """Memory has fields of a fixed size for each answer, whether it was written now or read."""
    path, tokens = tmp_path / "out.jsonl", list(range(5000))
    with JobOutput(str(path)) as output:
        output.write([answer(2, tokens=tokens, speech={"seconds": 1.5}), answer(1, error="no")])
        written = dict(output.entries)
        output.merge([1, 2])
        read = output.entries
    whole = path.read_bytes().splitlines(keepends=True)
    assert json.loads(whole[1])["tokens"] == tokens
    for found in (written, read):
        assert [(entry.fault, entry.tokens, entry.seconds) for entry in (found[1], found[2])] == [
            (True, 0, 0.0), (False, 5000, 1.5),
        ]  # fmt: skip
        for entry in found.values():
            held = [getattr(entry, name) for name in entry.__slots__]
            assert not hasattr(entry, "__dict__")
            assert {type(value) for value in held} <= {str, bool, int, float}
            assert sum(map(sys.getsizeof, [entry, *held])) < 700


def test_lone_surrogates_are_escaped(tmp_path):
    path = tmp_path / "out.jsonl"
    with JobOutput(str(path)) as output:
        output.write([answer(1, text="schön"), answer(2, id="\ud800", text="schön")])
    first, second = path.read_bytes().splitlines()
    assert "schön".encode() in first
    assert json.loads(second) == {"line": 2, "id": "\ud800", "text": "schön", "of": "sum2"}


def test_input_lines_keep_their_numbers(tmp_path, bucket):
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"\xef\xbb\xbf[1]\r\n\n  \n[2]")
    assert list(lines_of(str(path))) == [(1, b"[1]"), (4, b"[2]")]
    fsspec.filesystem("memory").pipe_file(f"{bucket}/in.jsonl", b"[1]\n")
    assert list(lines_of(f"{bucket}/in.jsonl")) == [(1, b"[1]")]
    for source in (str(tmp_path / "none.jsonl"), f"{bucket}/none.jsonl"):
        with pytest.raises(ValueError, match="no such file"):
            list(lines_of(source))
    with pytest.raises(ValueError, match="cannot be read"):
        list(lines_of(str(tmp_path)))
    packed = gzip.compress(b"[1]\n" * 1000)
    for content in (packed[:-10], packed[:20], packed[:12] + b"\xff" * 9, b"no such thing"):
        (tmp_path / "in.jsonl.gz").write_bytes(content)
        with pytest.raises(ValueError, match=r"in\.jsonl\.gz: is cut off or damaged"):
            list(lines_of(str(tmp_path / "in.jsonl.gz")))


def zipped(content):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for text in content:
            packed.writestr("in.jsonl", text)
    return file.getvalue()


LINES = b"".join(b'{"messages": "%d"}\n' % (7**number) for number in range(200))
PACKED = {"gz": gzip.compress(LINES), "bz2": bz2.compress(LINES), "xz": lzma.compress(LINES), "zip": zipped([LINES])}


@pytest.mark.parametrize("suffix", PACKED)
def test_a_damaged_compressed_input_raises_a_one_line_user_error(tmp_path, suffix):
    """A retry would fail again, so the shell's exit code is 2."""
    path, whole, middle = tmp_path / f"in.jsonl.{suffix}", PACKED[suffix], len(PACKED[suffix]) // 2
    path.write_bytes(whole)
    assert len(list(lines_of(str(path)))) == 200
    for content in (
        b"[1]\n" * 100,
        whole[:middle],
        whole[:middle] + bytes(40) + whole[middle + 40 :],
        *(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :] for at in (0, 1, middle, len(whole) - 6)),
        *(
            [zipped([]), whole.replace(b"\x08\0", b"\x63\0"), whole.replace(b"\0\0\x08\0", b"\x01\0\x08\0")]
            * (suffix == "zip")
        ),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"^{path}: is cut off or damaged \(") as refused:
            list(lines_of(str(path)))
        assert not isinstance(refused.value, RetryableError)
        assert "\n" not in str(refused.value)
        assert len(str(refused.value)) < 500


class ZstdError(Exception):
    pass


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz", "zip"])
@pytest.mark.parametrize(
    ("error", "expected", "words"),
    [
        (OSError("Connection lost"), RetryableError, r"cannot be read \(Connection lost\)$"),
        (OSError("x" * 9000), RetryableError, r"cannot be read \(x{10,180}[.]{3}x+\)$"),
        (OSError(5, "Input/output error"), RetryableError, "cannot be read .*Input/output error"),
        (TimeoutError("late"), RetryableError, r"cannot be read \(late\)$"),
        (aiohttp.ClientPayloadError("it broke off"), RetryableError, r"cannot be read \(it broke off\)$"),
        (PermissionError(13, "Permission denied"), UserError, "cannot be read .*Permission denied"),
        (ZstdError("Unknown frame"), ValueError, r"is cut off or damaged \(Unknown frame\)$"),
        (RuntimeError("LZ4F_decompress failed with code: 2"), ValueError, "is cut off or damaged .LZ4F_decompress"),
        (MemoryError(), MemoryError, "^$"),
        (TypeError("a fault of ours"), TypeError, "^a fault of ours$"),
        (RecursionError("too deep"), RecursionError, "^too deep$"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_other_read_errors_are_not_called_damage(bucket, monkeypatch, suffix, error, expected, words):
    files = fsspec.filesystem("memory")
    files.pipe_file(f"{bucket}/in.jsonl.{suffix}", PACKED[suffix])

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(files, "_open", fail)
    with pytest.raises(expected, match=words) as refused:
        list(lines_of(f"{bucket}/in.jsonl.{suffix}"))
    assert type(refused.value) is expected
    assert isinstance(refused.value, ValueError) is (expected in (ValueError, UserError))


def test_a_failing_network_is_retryable(bucket, monkeypatch):
    def reset(*_, **__):
        raise ConnectionResetError("reset by peer")

    monkeypatch.setattr(fsspec.filesystem("memory"), "_open", reset)
    with pytest.raises(RetryableError, match=r"cannot be read \(reset by peer"):
        list(lines_of(f"{bucket}/in.jsonl"))
    monkeypatch.undo()
    fsspec.filesystem("memory").pipe_file(f"{bucket}/in.jsonl", b"")
