"""Whom a page's server refuses; the same over HTTP is in tests/study/rate/test_rate.py."""

import pytest

from web import guard

OWN = "http://127.0.0.1:1"


def ask(method="POST", host="127.0.0.1:1", origin=OWN, kind="application/json"):
    refused = guard.refusal(method, host, origin, kind, guard.host_names("127.0.0.1", 1))
    return refused and refused[0]


def test_the_page_itself_is_let_in_under_every_spelling():
    assert ask() is None and ask("GET", origin=None, kind=None) is None
    assert ask(host="LOCALHOST:1", origin="http://LocalHost:1") is None
    assert ask(host="[::1]:1", origin="http://[::1]:1") is None
    assert ask(origin="https://127.0.0.1:1") is None, "a proxy that speaks TLS"


@pytest.mark.parametrize("host", [None, "", "evil.example", "127.0.0.1:2", "127.0.0.1:1.evil"])
def test_another_host_is_refused_reading_too(host):
    assert ask(host=host) == 421 and ask("GET", host=host) == 421


@pytest.mark.parametrize(
    "origin", [None, "", "null", "http://evil.example", "evil://127.0.0.1:1", f"{OWN}.evil.example"]
)
def test_another_origin_is_refused(origin):
    assert ask(origin=origin) == 403 and ask("GET", origin=origin) is None


def test_a_form_is_refused():
    for kind in (None, "", "text/plain", "application/x-www-form-urlencoded"):
        assert ask(kind=kind) == 403


def test_a_server_on_every_address_has_the_names_it_was_given():
    assert guard.host_names("0.0.0.0", 80) == set()
    assert guard.host_names("", 80, ["Study.example"]) == {"study.example:80", "study.example"}
    assert guard.host_names("::", 80, ["[2001:db8::1]"]) == {"[2001:db8::1]:80", "[2001:db8::1]"}
