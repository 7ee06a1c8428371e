"""The sentence a user is told is one line, however long and broken what was found is."""

from __future__ import annotations

from pyro_fcr.errors import sentence


def test_what_was_found_is_quoted_up_to_a_point_and_on_one_line() -> None:
    told = sentence(
        "w", where="here", expected="less", got="a\nb\u2028c" + "x" * 9_000, hint="cut"
    )
    assert len(told.splitlines()) == 1
    assert told.startswith("w (here): expected less, got a b cxxx")
    assert told.endswith("x…; cut.")
    assert len(told) < 400
