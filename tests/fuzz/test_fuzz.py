"""A fixed share of the fuzzing; ``python -m tests.fuzz`` tries further cases (tests/fuzz/README.md)."""

from tests.fuzz.cases import Bounds
from tests.fuzz.harness import try_all
from tests.fuzz.planted import number_of

# tests/engine/test_wrong_options.py tries each option with wrong types: fuzzed options compile programs for minutes.
SHARE = {
    "media": 120,
    "config": 80,
    "weights": 60,
    "conversations": 200,
    "addresses": 300,
    "jobs": 120,
}
FAULTS = {
    "wrong kind": "TypeError: object of type 'int' has no len()",
    "long": "a message of 500 characters",
    "two lines": "a message of 2 lines",
    "wordless": "ValueError without a word",
    "traceback": "printed a traceback",
    "exit": "SystemExit: 1",
    "death": "the process died (3)",
    "waits": "no end after",
    "works": "no end after",
    "memory": "GB and went on",
    "moment": " GB",
}


def test_no_case_of_the_share_has_a_fault():
    cases = [(kind, number) for kind, count in SHARE.items() for number in range(count)]
    outcomes = list(try_all(cases, seed="share", bounds=Bounds()))
    faults = [f"{found.kind} {found.number}: {found.fault} ({found.place})" for found in outcomes if found.fault]
    assert not faults, "\n".join(faults)
    assert [(outcome.kind, outcome.number) for outcome in outcomes] == cases
    for kind in SHARE:  # a kind that is never or always refused tests little
        assert {outcome.refused for outcome in outcomes if outcome.kind == kind} == {True, False}, kind


def test_the_harness_finds_every_planted_fault_and_continues():
    names = ["answered", *FAULTS, "refused"]
    cases = [("planted", number_of(name, "planted")) for name in names]
    outcomes = list(try_all(cases, seed="planted", bounds=Bounds(seconds=3, growth=100_000_000)))
    assert [outcome.what for outcome in outcomes] == names
    for outcome in outcomes[1:-1]:
        assert outcome.fault is not None, outcome.what
        assert FAULTS[outcome.what] in outcome.fault
    assert [outcomes[0].fault, outcomes[-1].fault] == [None, None]
    assert [outcomes[0].refused, outcomes[-1].refused] == [False, True]
