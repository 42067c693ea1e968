"""A model behind HTTP, against a real server on this machine that fails in every way that it can."""

import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
from endpoint_server import (
    EndpointServer,
    at_most,
    drip,
    drip_headers,
    flood,
    half,
    hang,
    hang_up,
    says,
    slowly,
    status,
)
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from voltmill.connectors import endpoint_probe
from voltmill.connectors import endpoint_wire as wire
from voltmill.connectors.breaker import Breaker
from voltmill.connectors.endpoint import EndpointError, EndpointModel, EndpointSettings
from voltmill.flows.broker import free_port
from voltmill.flows.endpoint import open_endpoint
from voltmill.operators.contract import Contract, Feature
from voltmill.operators.model import ModelError

KEY = "S3cr3t/4711+with=signs"
CONTRACT = Contract(
    kind="features",
    name="echo",
    version="1",
    target="soc",
    unit="percent",
    features=tuple(Feature(name=name, offset=0.0, scale=1.0, low=0.0, high=1.0) for name in ("c_rate", "power")),
    outputs=("value", "laplace_scale"),
    current_sign="positive_while_charging",
    dt_range_seconds=(0.0, 60.0),
    cell_type="lg-hg2",
    nominal_ah=3.0,
    training_data_sha256="0" * 64,
)
TEXT = msgspec.json.encode(CONTRACT)
ROWS = np.array([[0.1, 0.2], [3.0, -4.5], [np.nan, 1e-45]], np.float32)


@pytest.fixture
def server() -> Iterator[EndpointServer]:
    started = EndpointServer()
    yield started
    started.stop()


class Seen:
    """What the callbacks were told."""

    def __init__(self) -> None:
        self.outcomes, self.retries, self.open = Counter[str](), Counter[str](), list[bool]()

    def observe(self, outcome: str, seconds: float) -> None:
        assert 0 <= seconds < 30
        self.outcomes[outcome] += 1

    def on_retry(self, outcome: str) -> None:
        self.retries[outcome] += 1


Make = Callable[..., EndpointModel[Contract]]


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def make(server: EndpointServer, seen: Seen) -> Iterator[Make]:
    made = []

    def build(**settings) -> EndpointModel[Contract]:
        given = {
            "url": server.url,
            "contract": "echo.json",
            "key": KEY,
            "timeout_seconds": 0.3,
            "deadline_seconds": 5.0,
        }
        calls = {"observe": seen.observe, "on_retry": seen.on_retry, "on_open": seen.open.append}
        made.append(EndpointModel(EndpointSettings(**given | settings), CONTRACT, TEXT, **calls))
        return made[-1]

    yield build
    for model in made:
        model.close()


def failure(model: EndpointModel[Contract], rows: np.ndarray = ROWS) -> EndpointError:
    with pytest.raises(EndpointError) as caught:
        model.predict(rows)
    line = str(caught.value)
    assert "\n" not in line and KEY not in line and len(line) < 700
    assert "127.0.0.1" in line or "localhost" in line
    return caught.value


# --- what goes over the wire ----------------------------------------------------------------------


def test_a_row_comes_back_to_the_bit(make, server):
    model = make(deployment="blue")
    assert model.predict(ROWS).tobytes() == ROWS.tobytes()
    headers, body = server.requests[0]
    assert headers["Authorization"] == f"Bearer {KEY}" and headers["azureml-model-deployment"] == "blue"
    assert body == {"columns": ["c_rate", "power"], "data": [[0.1, 0.2], [3.0, -4.5], [None, 1e-45]]}


def test_nothing_is_sent_that_was_not_set(make, server, caplog):
    make(key="").predict(ROWS)
    assert caplog.records == []
    headers, _ = server.requests[0]
    assert not {"authorization", "azureml-model-deployment"} & {name.lower() for name in headers}


def test_no_rows_are_no_request(make, server):
    assert make().predict(ROWS[:0]).shape == (0, 2)
    assert server.requests == []


def test_a_row_with_an_infinite_feature_gets_no_number(make):
    rows = np.array([[1.0, np.inf], [1.0, 2.0], [-np.inf, 2.0]], np.float32)
    assert np.isnan(make().predict(rows)).all(axis=1).tolist() == [True, False, True]


ANY = st.floats(width=32, allow_subnormal=True)


@given(arrays(np.float32, st.tuples(st.integers(0, 5), st.just(3)), elements=ANY))
def test_every_float_survives_both_ways(x):
    x[np.isinf(x)] = np.nan
    assert np.array_equal(wire.read_request(wire.request("abc", x), "abc"), x, equal_nan=True)
    back = wire.read_answer(wire.answer(x), len(x), 3)
    assert np.array_equal(back.view(np.uint32)[~np.isnan(x)], x.view(np.uint32)[~np.isnan(x)])
    assert np.isnan(back[np.isnan(x)]).all()


def test_the_floats_that_are_hard_to_write_survive():
    easy = np.array([0.0, -0.0, 1e-45, 3.4028235e38, 16777216.0, 123456790.0, 0.1, 1 / 3], np.float32)
    # Bits, for this decimal read as float64 and then rounded is the float32 next to it.
    twice_rounded = np.array([0x15AE43FE, 0x15AE43FD, 0x15AE43FC, 0x95AE43FE, 0x95AE43FD], np.uint32).view(np.float32)
    assert str(twice_rounded[1]) == "7.038531e-26" and np.float32(7.038531e-26) == twice_rounded[0]
    x = np.concatenate([easy, twice_rounded])[None]
    names = [str(k) for k in range(x.size)]
    assert wire.read_request(wire.request(names, x), names).tobytes() == x.tobytes()
    assert wire.read_answer(wire.answer(x), 1, x.size).tobytes() == x.tobytes()
    assert b"0.1," in wire.request(names, x) and b"0.10000000149" not in wire.request(names, x)


def test_windows_keep_their_shape():
    x = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
    assert wire.read_request(wire.request("ab", x), "ab", 3).tobytes() == x.tobytes()
    with pytest.raises(wire.WireError, match="4 rows where 4 x 2 x 2 numbers belong"):
        wire.read_request(wire.request("ab", x), "ab", 2)


@pytest.mark.parametrize(
    "body",
    [
        b'{"outputs": [[1, 2.5], [null, 4]]}',
        b"[[1, 2.5], [NaN, 4]]",
        b'"{\\"outputs\\": [[1, 2.5], [null, 4]]}"',
        b'{"outputs": [[1, 2.5], [1e400, 4]], "more": "is left alone"}',
        b"[[1, 2.5], [1e39, 4]]",
    ],
)
def test_answers_in_other_words(body):
    assert np.array_equal(wire.read_answer(body, 2, 2), [[1, 2.5], [np.nan, 4]], equal_nan=True)


def test_one_output_may_come_as_a_plain_list():
    assert wire.read_answer(b"[1, null]", 2, 1)[0, 0] == 1.0
    assert wire.read_answer(b"[[1], [2]]", 2, 1).tolist() == [[1.0], [2.0]]


NO_ANSWERS = [
    (b"", "not JSON"),
    (b"<html>oops</html>", "not JSON"),
    (b"\xff\xfe", "not JSON"),
    (b"[" * 60_000, "not JSON"),
    (b"null", 'no "outputs"'),
    (b"{}", 'no "outputs"'),
    (b'{"outputs": {"value": 1}}', 'no "outputs"'),
    (b'{"outputs": [["1", 2], [3, 4], [5, 6]]}', 'no "outputs"'),
    (b'{"outputs": [[true, 2], [3, 4], [5, 6]]}', 'no "outputs"'),
    (b"[1, 2, 3]", 'no "outputs"'),
    (b"[]", "0 rows where 3 x 2"),
    (b"[[1, 2], [3, 4]]", "2 rows where 3 x 2"),
    (b"[[1, 2], [3, 4], [5]]", "another length"),
    (b"[[1], [2], [3]]", "another length"),
]


@pytest.mark.parametrize(("body", "why"), NO_ANSWERS)
def test_an_answer_that_is_none_is_said_and_not_asked_for_again(make, server, seen, body, why):
    server.usual = says(body)
    model = make()
    assert why in str(failure(model)) and "compare its scoring script" in str(failure(model))
    assert seen.retries == {} and seen.open == [] and len(server.requests) == 2


@pytest.mark.parametrize(
    "body",
    ["", "[]", "{}", '{"input_data": [[1, 2]]}', '{"input_data": {"columns": ["a", "b"], "data": [["1", 2]]}}']
    + ['{"input_data": {"columns": ["b", "a"], "data": [[1, 2]]}}', '{"input_data": {"columns": ["a", "b"]}}']
    + ['{"input_data": {"columns": ["a", "b"], "data": [[1], [2]]}}', "[" * 60_000]
    + ['{"input_data": {"columns": ["a", "b"], "data": [[1, NaN]]}}'],
)
def test_a_request_that_is_none_is_refused_in_one_line(body):
    with pytest.raises(wire.WireError) as caught:
        wire.read_request(body, ("a", "b"))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


# --- batches --------------------------------------------------------------------------------------


def test_batches_are_cut_and_put_together_in_order(make, server):
    rows = np.random.default_rng(0).normal(size=(1001, 2)).astype(np.float32)
    assert make(batch_rows=100).predict(rows).tobytes() == rows.tobytes()
    assert sorted(server.rows) == [1, *[100] * 10]


def test_requests_run_side_by_side_over_connections_that_are_kept(make, server):
    server.usual = slowly(0.05)
    rows = np.zeros((400, 2), np.float32)
    model = make(batch_rows=10, concurrency=4, timeout_seconds=5.0)
    began = time.monotonic()
    model.predict(rows)
    took = time.monotonic() - began
    assert server.most_under_way == 4 and len(server.peers) == 4 and len(server.requests) == 40
    assert took < 40 * 0.05 / 2
    model.predict(rows)
    assert len(server.peers) == 4


def test_several_threads_share_the_limit_and_get_their_own_rows(make, server):
    server.usual = slowly(0.01)
    model, wrong = make(batch_rows=10, concurrency=3), []

    def ask(seed: int) -> None:
        rows = np.random.default_rng(seed).normal(size=(50, 2)).astype(np.float32)
        wrong.extend([seed] * (model.predict(rows).tobytes() != rows.tobytes()))

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert wrong == [] and len(server.requests) == 30 and server.most_under_way <= 3


def test_what_is_too_large_is_halved_and_stays_so(make, server, seen):
    server.usual = at_most(30)
    rows = np.random.default_rng(0).normal(size=(100, 2)).astype(np.float32)
    model = make()
    assert model.predict(rows).tobytes() == rows.tobytes()
    assert server.rows[:3] == [100, 50, 25] and seen.outcomes["413"] == 3 and seen.retries == {}
    del server.requests[:]
    assert model.predict(rows).tobytes() == rows.tobytes()
    assert server.rows == [25] * 4
    server.usual = at_most(0)
    assert "one row alone is too large" in str(failure(model))
    assert seen.open == []


# --- failures that pass ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("react", "outcome"),
    [
        (status(408), "408"),
        (status(429), "429"),
        (status(500, b"oops"), "500"),
        (status(503), "503"),
        (status(424, b"", ms_azureml_model_error_statuscode="503"), "424"),
        (hang, "timeout"),
        (drip, "timeout"),
        (hang_up, "connection"),
        (half, "connection"),
    ],
)
def test_what_may_pass_is_sent_again(make, server, seen, react, outcome):
    server.script = [react, react]
    assert make().predict(ROWS).tobytes() == ROWS.tobytes()
    assert seen.outcomes == {outcome: 2, "ok": 1} and seen.retries == {outcome: 2} and seen.open == []


def test_a_request_is_sent_so_often_and_no_more(make, server, seen):
    server.usual = status(503, b"overloaded")
    assert "answers 503 (overloaded)" in str(failure(make(attempts=3)))
    assert len(server.requests) == 3 and seen.retries == {"503": 2} and seen.open == [True]


def test_the_waits_grow(make, server):
    server.usual = status(503)
    began = time.monotonic()
    failure(make(attempts=4))
    assert 0.35 <= time.monotonic() - began  # at least half of 0.1 + 0.2 + 0.4 s


def retry_date() -> str:
    return format_datetime(datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=2), usegmt=True)


@pytest.mark.parametrize("when", [lambda: "1", retry_date])
def test_retry_after_is_heeded(make, server, when):
    server.script = [lambda handler: handler.send(429, Retry_After=when())]
    began = time.monotonic()
    assert make().predict(ROWS).tobytes() == ROWS.tobytes()
    assert 0.99 <= time.monotonic() - began < 4


@pytest.mark.parametrize("when", ["", "soon", "-3", "Wed, 99 Foo", "0"])
def test_a_retry_after_that_says_nothing_is_none(make, server, when):
    server.script = [status(429, Retry_After=when)]
    began = time.monotonic()
    assert make().predict(ROWS).tobytes() == ROWS.tobytes()
    assert time.monotonic() - began < 1


def test_a_retry_after_past_the_deadline_is_not_waited_for(make, server, seen):
    server.usual = status(429, Retry_After="30")
    model = make()
    began = time.monotonic()
    assert "lower concurrency" in str(failure(model))
    assert "left alone for 30" in str(failure(model)) or "left alone for 29" in str(failure(model))
    assert time.monotonic() - began < 2 and len(server.requests) == 1 and seen.open == [True]


@pytest.mark.parametrize("react", [hang, drip, drip_headers])
def test_the_deadline_holds_for_all_requests_together(make, server, react):
    server.usual = react
    model = make(batch_rows=1, concurrency=2, timeout_seconds=0.4, deadline_seconds=0.8, attempts=50)
    began = time.monotonic()
    assert "no answer in time" in str(failure(model, np.zeros((20, 2), np.float32)))
    assert time.monotonic() - began < 1.6


def test_an_endless_answer_is_not_read_to_its_end(make, server, seen):
    server.usual = flood
    assert "longer than that of a model" in str(failure(make(timeout_seconds=3.0)))
    assert seen.outcomes == {"answer": 1}


def test_one_failed_request_fails_the_batch_at_once(make, server):
    server.script = [status(400, b"bad")]
    server.usual = slowly(0.1)
    model = make(batch_rows=1, concurrency=2)
    began = time.monotonic()
    assert "answers 400 (bad): it takes another input" in str(failure(model, np.zeros((200, 2), np.float32)))
    assert time.monotonic() - began < 2 and len(server.requests) < 20


# --- failures that do not pass --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "mend", "opens"),
    [
        (301, "answers 301", True),
        (400, "compare its scoring script", False),
        (401, "set key", True),
        (403, "may score", True),
        (404, "check url and deployment", True),
        (422, "answers 422", False),
    ],
)
def test_what_does_not_pass_is_said_at_once(make, server, seen, code, mend, opens):
    server.usual = status(code, b"because", Location=server.url)
    assert mend in str(failure(make()))
    assert len(server.requests) == 1 and seen.open == [True] * opens


WRAPPED = {"ms_azureml_model_error_statuscode": "500", "ms_azureml_model_error_reason": "raised"}


@pytest.mark.parametrize(
    "react",
    [
        status(424, b"it broke", **WRAPPED),
        status(424, b"it broke"),
        status(500, b"it broke", x_ms_run_function_failed="True"),
    ],
)
def test_an_error_of_the_model_is_tried_once_more_and_passed_on(make, server, seen, react):
    server.usual = react
    model = make()
    assert "it broke" in str(failure(model)) and "the model itself failed" in str(failure(model))
    assert len(server.requests) == 4 and seen.open == []


def test_a_model_that_names_what_is_wrong_with_the_rows_is_not_asked_again(make, server, seen):
    server.usual = status(424, b"no such column", ms_azureml_model_error_statuscode="400")
    assert "no such column" in str(failure(make()))
    assert len(server.requests) == 1 and seen.open == []


def test_nobody_listens(make, seen):
    model = make(url=f"http://127.0.0.1:{free_port()}/score", attempts=2)
    assert "no connection" in str(failure(model)) and "refused" in str(model._last)
    assert seen.outcomes == {"connection": 2} and seen.open == [True]


# --- the circuit breaker --------------------------------------------------------------------------


def test_a_dead_endpoint_slows_nothing_and_its_return_is_noticed(make, server, seen, caplog):
    caplog.set_level(logging.INFO, "voltmill.endpoint")
    server.usual = hang
    model = make(timeout_seconds=0.1, attempts=2, pause_seconds=0.3)
    failure(model)
    assert len(server.requests) == 2 and seen.open == [True]
    began = time.monotonic()
    assert all(failure(model).outcome == "held_back" for _ in range(100))
    assert time.monotonic() - began < 0.2 and len(server.requests) == 2
    time.sleep(0.3)
    assert failure(model).outcome == "timeout"
    assert len(server.requests) == 3  # a probe is sent once
    assert failure(model).outcome == "held_back" and model._breaker.remaining > 0.3  # the pause has doubled
    server.usual = says({"outputs": [[1, 2]] * 3})
    deadline = time.monotonic() + 5
    while seen.open == [True] and time.monotonic() < deadline:
        try:
            model.predict(ROWS)
        except EndpointError as error:
            assert error.outcome == "held_back"
            time.sleep(0.02)
    assert seen.open == [True, False]
    assert [record.getMessage().split("; ")[-1][:16] for record in caplog.records[1:]] == [
        "it is left alone",
        "endpoint http://",
    ]
    assert model.predict(ROWS).tolist() == [[1, 2]] * 3


def test_a_breaker_doubles_up_to_a_limit_and_lets_one_probe_through():
    now, told = [0.0], []
    breaker = Breaker(1.0, 5.0, on_open=told.append, clock=lambda: now[0])
    assert breaker.admits() and breaker.admits()
    pauses = []
    breaker.failed()
    breaker.failed()  # the other one, which was under way
    for _ in range(4):
        pauses.append(breaker.remaining)
        assert not breaker.admits()
        now[0] += breaker.remaining
        assert breaker.admits() and not breaker.admits()
        breaker.failed()
    assert pauses == [1.0, 2.0, 4.0, 5.0] and told == [True]
    now[0] += 5.0
    assert breaker.admits()
    breaker.succeeded()
    assert told == [True, False] and breaker.admits() and breaker.admits() and breaker.remaining == 0.0
    breaker.failed(at_least=3.0)
    assert breaker.remaining == 3.0
    breaker.succeeded()
    breaker.failed(at_least=99.0)
    assert breaker.remaining == 5.0


def test_an_error_of_another_kind_does_not_leave_the_breaker_half_open(make, server, monkeypatch):
    model = make(pause_seconds=0.05)
    monkeypatch.setattr(wire, "request", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model.predict(ROWS)
    monkeypatch.undo()
    time.sleep(0.06)
    assert model.predict(ROWS).tobytes() == ROWS.tobytes()


# --- secrets --------------------------------------------------------------------------------------


def test_the_key_is_nowhere_to_be_seen(make, server, caplog):
    caplog.set_level(logging.DEBUG)
    leaks = [
        f"Authorization: Bearer {KEY}",
        f"token={KEY[:12]}",
        f'{{"api_key": "{KEY}"}}',
        f"<b>{KEY}</b>",
        "Bearer abc.def",
    ]
    for leak in leaks:
        server.script.append(status(400, leak.encode()))
    server.script += [status(200, f"{KEY}".encode()), half, hang_up, status(503, KEY.encode())]
    server.usual = status(401, KEY.encode())
    model = make(attempts=1, pause_seconds=0.001, longest_pause_seconds=0.001)
    for _ in range(12):
        line = str(failure(model))
        assert "S3cr3t" not in line and "abc.def" not in line
        time.sleep(0.002)
    text = f"{model!r} {model._settings!r} {caplog.text}"
    assert KEY not in text and "S3cr3t" not in text and "left alone" in text


def test_the_text_of_an_error_is_one_short_line(make, server):
    server.usual = status(400, b"<html>\r\n" + b"line\x1b[31m\n" * 5000)
    line = str(failure(make()))
    assert len(line) < 500 and line.isprintable()


def test_a_key_that_goes_in_the_clear_is_warned_of(make, caplog):
    make()
    assert "use https" in caplog.text and KEY not in caplog.text


# --- TLS ------------------------------------------------------------------------------------------


@pytest.fixture
def tls_server(certificates) -> Iterator[EndpointServer]:
    started = EndpointServer(certificates)
    yield started
    started.stop()


def test_tls_with_an_authority_of_our_own(make, tls_server, certificates):
    model = make(url=tls_server.url, ca_file=certificates.ca_file, timeout_seconds=5.0)
    assert model.predict(ROWS).tobytes() == ROWS.tobytes()


def test_a_certificate_of_an_unknown_authority_is_refused(make, tls_server, seen):
    assert "name its authority in ca_file" in str(failure(make(url=tls_server.url, timeout_seconds=5.0)))
    assert tls_server.requests == [] and seen.retries == {} and seen.open == [True]


def test_a_certificate_for_another_name_is_refused(make, tls_server, certificates):
    url = tls_server.url.replace("localhost", "127.0.0.1")
    failure(make(url=url, ca_file=certificates.ca_file, timeout_seconds=5.0))
    assert tls_server.requests == []


class Identity:
    """In place of `DefaultAzureCredential`: gives token after token, or says that it has none."""

    lasts, fails, scopes = 3600.0, False, list[str]()

    def get_token(self, scope: str) -> SimpleNamespace:
        if self.fails:
            raise RuntimeError("DefaultAzureCredential failed\nManagedIdentityCredential: no")
        self.scopes.append(scope)
        return SimpleNamespace(token=f"t0k3n-{len(self.scopes)}", expires_on=time.time() + self.lasts)


@pytest.fixture
def entra(monkeypatch) -> type[Identity]:
    made = type("Made", (Identity,), {"scopes": []})
    monkeypatch.setattr("azure.identity.DefaultAzureCredential", made)
    return made


def test_a_token_of_entra_id_is_renewed_before_it_expires(make, tls_server, certificates, entra):
    given = {"url": tls_server.url, "ca_file": certificates.ca_file, "key": "", "credential": "default"}
    model = make(timeout_seconds=5.0, **given)
    for _ in range(2):
        model.predict(ROWS)
    entra.lasts = 200.0  # too short to be kept
    again = make(timeout_seconds=5.0, **given)
    for _ in range(2):
        again.predict(ROWS)
    borne = [headers["Authorization"] for headers, _ in tls_server.requests]
    assert borne == ["Bearer t0k3n-1", "Bearer t0k3n-1", "Bearer t0k3n-2", "Bearer t0k3n-3"]
    assert set(entra.scopes) == {"https://ml.azure.com/.default"}
    tls_server.usual = status(400, b"t0k3n-4 is no good")
    assert "(*** is no good)" in str(failure(again))
    entra.fails = True  # the last one still holds
    assert "(*** is no good)" in str(failure(again))


def test_no_token_of_entra_id_is_one_line(make, tls_server, certificates, entra, monkeypatch):
    given = {"url": tls_server.url, "ca_file": certificates.ca_file, "key": "", "credential": "default"}
    entra.fails = True
    error = failure(make(attempts=2, timeout_seconds=5.0, **given))
    assert error.outcome == "token" and "no Entra ID token: DefaultAzureCredential failed: give" in str(error)
    settings = EndpointSettings(**given, contract="echo.json")
    assert "no Entra ID token: DefaultAzureCredential failed" in endpoint_probe.probe(settings, ("a",)).problem
    monkeypatch.setitem(sys.modules, "azure.identity", None)
    with pytest.raises(EndpointError, match=r"pip install 'voltmill\[azure\]'"):
        make(**given)


# --- settings and identity ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"url": "soc.example/score"}, "url must be"),
        ({"url": "http://soc.example/", "credential": "default", "key": ""}, "needs an https url"),
        ({"url": "https://soc.example/", "credential": "default", "key": "x"}, "no key beside it"),
        ({"url": "ftp://soc.example/score"}, "url must be"),
        ({"url": f"https://me:{KEY}@soc.example/score"}, "a key is in key"),
        ({"url": f"https://soc.example/score?code={KEY}"}, "without user, query"),
        ({"url": "https://soc.example:99999/score"}, "url must be"),
        ({"url": "https:///score"}, "url must be"),
        ({"contract": ""}, "contract is empty"),
        ({"key": f"{KEY}\n"}, "key holds what no header can carry"),
        ({"deployment": "blue\r\nX-Evil: 1"}, "deployment holds"),
        ({"url": "http://soc.example/", "ca_file": "ca.pem"}, "not https"),
        ({"timeout_seconds": 0.0}, "timeout_seconds"),
        ({"deadline_seconds": 1.0}, "at least as long"),
        ({"attempts": 0}, "attempts"),
        ({"concurrency": 101}, "concurrency"),
        ({"batch_rows": 0}, "batch_rows"),
        ({"pause_seconds": 90.0}, "longest_pause_seconds"),
    ],
)
def test_wrong_settings_are_refused(settings, why):
    with pytest.raises(ValueError, match=why) as caught:
        EndpointSettings(**{"url": "https://soc.example/score", "contract": "soc.json"} | settings)
    assert "S3cr3t" not in str(caught.value)


def identity(text: bytes = TEXT, **settings) -> str:
    given = {"url": "https://soc.example/score", "contract": "soc.json"} | settings
    model = EndpointModel(EndpointSettings(**given), CONTRACT, text)
    model.close()
    return model.sha256


def test_another_contract_url_or_deployment_is_another_model():
    different = [identity(TEXT + b" "), identity(url="https://soc.example/v2"), identity(deployment="blue"), identity()]
    assert len(set(different)) == 4 and all(len(bytes.fromhex(digest)) == 32 for digest in different)


def test_another_key_or_patience_is_not():
    same = [identity(), identity(key=KEY), identity(contract="moved.json"), identity(attempts=1, batch_rows=7)]
    assert len(set(same)) == 1


def test_a_model_is_opened_from_its_contract(tmp_path, server):
    file = tmp_path / "echo.json"
    file.write_bytes(TEXT)
    settings = EndpointSettings(url=server.url, contract=str(file))
    model = open_endpoint(settings)
    assert model.contract == CONTRACT and model.remote and model.predict(ROWS).tobytes() == ROWS.tobytes()
    model.close()


@pytest.mark.parametrize(
    ("text", "settings", "why"),
    [
        (None, {}, "cannot be read"),
        (b"{}", {}, "no contract: Object missing required field"),
        (b"\xff", {}, "no contract"),
        (TEXT, {"ca_file": "missing.pem", "url": "https://soc.example/score"}, "missing.pem"),
        (TEXT.replace(b'"features"', b'"step"', 1).replace(b'"state_size":0', b'"state_size":4'), {}, "HTTP"),
    ],
)
def test_a_contract_that_cannot_be_used_is_said_in_one_line(tmp_path, text, settings, why):
    file = tmp_path / "echo.json"
    if text is not None:
        file.write_bytes(text)
    with pytest.raises(ModelError, match=why) as caught:
        open_endpoint(EndpointSettings(**{"url": "http://127.0.0.1:1/", "contract": str(file)} | settings))
    assert "\n" not in str(caught.value)
