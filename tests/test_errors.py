"""User errors and retryable errors; values in messages: one short line for any value."""

import errno

import aiohttp
import numpy as np
import pytest

from omni_jax.errors import (
    RetryableError,
    UserError,
    about,
    cut,
    is_out_of_memory,
    is_user_error,
    kind_of,
    listed,
    shown,
)

ITSELF = []
ITSELF.append(ITSELF)
DEEP = []
for _ in range(100_000):
    DEEP = [DEEP]


class Loud:
    """A class whose repr raises."""

    def __repr__(self):
        raise RuntimeError


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("x", "'x'"),
        (3, "3"),
        (True, "True"),
        (None, "None"),
        (1.5, "1.5"),
        (float("nan"), "nan"),
        ([1, 2], "[1, 2]"),
        ({"a": 1}, "{'a': 1}"),
        ("a\nb", "'a\\nb'"),
        (b"abc", "b'abc'"),
        (b"x" * 1000, "b'xxxxxxxxxxxxxxxx'... of 1,000 bytes"),
        (10**5000, "a number of 16,610 bits"),
        (np.zeros((2, 3), np.float32), "float32 [2, 3]"),
        (np.float32(2), "float32 2.0"),
        (int, "int"),
        (Loud(), "a Loud"),
        ([Loud()], "[a Loud]"),
        (ValueError("two\nlines"), "two lines"),
        (ValueError(), "ValueError"),
    ],
    ids=lambda item: type(item).__name__,
)
def test_a_small_value_is_shown_whole_and_an_unknown_one_by_its_type(value, said):
    assert shown(value) == said


@pytest.mark.parametrize(
    "value",
    [
        "x" * 100_000,
        "\n" * 100_000,
        "é\u2028" * 1000,
        10**400,
        [1] * 100_000,
        [["x" * 1000] * 1000] * 1000,
        {str(i): "y" * 1000 for i in range(1000)},
        DEEP,
        ITSELF,
        np.str_("z" * 10_000),
        ValueError("w" * 10_000),
        b"\0" * 10_000,
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("most", [40, 80, 200])
def test_a_large_value_is_shortened_to_one_line(value, most):
    said = shown(value, most)
    assert said
    assert len(said) <= most
    assert len(said.splitlines()) == 1


def test_a_long_text_keeps_both_ends():
    assert cut("model.layers." + "x" * 10_000 + ".weight", 30).startswith("model.layers.")
    assert cut("model.layers." + "x" * 10_000 + ".weight", 30).endswith(".weight")
    assert cut("short") == "short"


def test_as_many_faults_are_listed_as_fit_in_a_line():
    assert listed([]) == ""
    assert listed(["one", "two"]) == "one; two"
    said = listed([f"field_{i}: missing" for i in range(100)])
    assert len(said) < 430
    assert said.startswith("field_0: missing; field_1: missing; ")
    assert said.endswith(" more")
    kept = said.count("missing")
    assert said.endswith(f"; and {100 - kept} more")
    assert len(listed(["x" * 10_000])) <= 400


def test_the_two_kinds_of_errors_have_no_base_in_common_but_exception():
    assert set(UserError.__mro__) & set(RetryableError.__mro__) == {Exception, BaseException, object}
    assert is_user_error(UserError("no"))
    assert not is_user_error(RetryableError("not now"))
    assert str(RetryableError("not now")) == "not now"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ValueError("no"), UserError),
        (ImportError("no package"), UserError),
        (PermissionError(errno.EACCES, "not yours"), UserError),
        (OSError(errno.ENAMETOOLONG, "File name too long"), UserError),
        (OSError(errno.ELOOP, "Too many levels of symbolic links"), UserError),
        (OSError(errno.EIO, "Input/output error"), RetryableError),
        (OSError(errno.ENOSPC, "No space left on device"), RetryableError),
        (ConnectionResetError("reset by peer"), RetryableError),
        (TimeoutError("late"), RetryableError),
        (aiohttp.ClientPayloadError("it broke off"), RetryableError),
        (RetryableError("not now"), RetryableError),
    ],
    ids=lambda value: repr(value) if isinstance(value, Exception) else "",
)
def test_an_error_keeps_its_kind_with_a_name_before_its_message(error, kind):
    assert kind_of(error) is kind
    with pytest.raises(kind, match=r"^a\.wav: not so$") as raised, about("a.wav"):
        raise kind_of(error)("not so")
    assert type(raised.value) is kind


def test_about_a_thing_without_a_name_keeps_the_message():
    with pytest.raises(UserError, match=r"^no$"), about(""):
        raise ValueError("no")
    with pytest.raises(KeyError), about("a.wav"):
        raise KeyError("of ours")


def test_only_a_device_without_memory_is_out_of_memory():
    assert is_out_of_memory(RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes."))
    assert not is_out_of_memory(RuntimeError("INTERNAL: core dumped"))
    assert not is_out_of_memory(ValueError("RESOURCE_EXHAUSTED: a store's quota"))  # as TensorStore says it
