"""How many connections a server gets to accept at once."""

import asyncio
import random
import socket
from collections import deque
from contextlib import closing, suppress

import pytest
from http_wire import Wire

from asyncsync.stores.http import pool as http1_pool
from asyncsync.stores.http.accept_limit import FEW_CONNECTIONS, WINDOW_RESPONSES, AcceptLimit
from asyncsync.stores.http.errors import BrokenError
from asyncsync.stores.http.tcp_info import nothing_acknowledged

MOST = 100


def served(acceptance, answers, seconds):
    """Time of a server that ends each connection. ``seconds(n)``: how long each of ``n`` under way takes."""
    now, under_way = 0.0, deque()
    while answers:
        while len(under_way) < acceptance.limit:
            under_way.append(now)
        began = under_way.popleft()
        now = max(now, began + seconds(len(under_way) + 1))
        acceptance.first_response(began, now, keep=False, waiting=True)
        answers -= 1


def test_few_connections_until_the_first_response_then_any_number():
    """Any number: to a server that keeps connections open."""
    acceptance = AcceptLimit(MOST)
    assert acceptance.limit == FEW_CONNECTIONS
    acceptance.first_response(0, 1, keep=True, waiting=True)
    assert acceptance.limit == MOST


def test_there_are_never_more_than_there_may_be():
    acceptance = AcceptLimit(2)
    assert acceptance.limit == 2
    served(acceptance, 1000, lambda _: 1.0)
    acceptance.overflowed(1000)
    assert acceptance.limit == 2


def test_after_an_overflow_a_server_gets_few_and_one_more_a_response():
    acceptance = AcceptLimit(MOST)
    acceptance.first_response(0, 1, keep=True, waiting=True)
    acceptance.overflowed(2)
    assert acceptance.limit == FEW_CONNECTIONS
    acceptance.first_response(2, 3, keep=True, waiting=True)
    assert acceptance.limit == FEW_CONNECTIONS + 1


def test_an_error_that_closes_its_connection_does_not_lower_the_limit():
    """A server that keeps connections may close one with an error."""
    acceptance = AcceptLimit(MOST)
    acceptance.first_response(0, 1, keep=True, waiting=True)
    for _ in range(10 * WINDOW_RESPONSES):
        acceptance.first_response(2, 9, keep=False, waiting=True)
    assert acceptance.limit == MOST


def test_a_server_with_one_thread_is_given_few():
    acceptance = AcceptLimit(MOST)
    served(acceptance, 3000, lambda n: 0.001 * n)
    assert acceptance.limit <= FEW_CONNECTIONS + 1


def test_where_times_vary_by_chance_few_stay_few():
    acceptance, rng, limits = AcceptLimit(MOST), random.Random(3), []

    def seconds(n):
        limits.append(acceptance.limit)
        return 0.001 * n * rng.uniform(0.4, 1.6)

    served(acceptance, 20_000, seconds)
    assert max(limits) <= 5
    assert sum(limits) / len(limits) < FEW_CONNECTIONS + 0.5


@pytest.mark.parametrize("room", [12, 30])
def test_a_far_server_gets_as_many_connections_as_it_can_serve(room):
    acceptance = AcceptLimit(MOST)
    served(acceptance, 20_000, lambda n: 0.03 * max(1, n / room))
    assert room * 0.75 <= acceptance.limit <= room * 1.5


def test_the_limit_does_not_grow_without_waiting_requests():
    acceptance = AcceptLimit(MOST)
    for _ in range(10 * WINDOW_RESPONSES):
        acceptance.first_response(0, 1, keep=False, waiting=False)
    assert acceptance.limit == FEW_CONNECTIONS


def test_a_request_that_the_peer_acknowledged_was_not_dropped():
    """Whether or not its program has accepted."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        client.sendall(b"request")
        assert not nothing_acknowledged(client)


# The pool


class Server:
    """Serves one request a connection; ``keep``: keeps the connection open."""

    def __init__(self, *, keep):
        self.keep = keep
        self.now = self.most = self.accepted = 0

    async def serve(self, reader, writer):
        self.accepted += 1
        self.now += 1
        self.most = max(self.most, self.now)
        with closing(writer), suppress(ConnectionError):
            while await reader.read(1000):
                await asyncio.sleep(0)
                version = b"HTTP/1.1" if self.keep else b"HTTP/1.0"
                writer.write(version + b" 200 OK\r\nContent-Length: 0\r\n\r\n")
                if not self.keep:
                    break
        self.now -= 1


async def mute(reader, writer):
    with closing(writer), suppress(ConnectionError):
        while await reader.read(1000):
            pass


def client(serve, most=50):
    return Wire(None).listening(serve, max_connections=most)


async def asked(http, times):
    async with asyncio.TaskGroup() as group:
        for _ in range(times):
            group.create_task(http.send(b"GET / HTTP/1.1\r\n\r\n", None))


async def test_a_server_that_ends_connections_has_few_at_once():
    server = Server(keep=False)
    async with client(server.serve) as http:
        await asked(http, 14)  # fewer than a window: then it depends on this machine
    assert (server.accepted, http.busy) == (14, 0)
    assert server.most <= FEW_CONNECTIONS + 1  # the one before may still be closing


async def test_a_server_that_keeps_connections_gets_all_after_one_response():
    server = Server(keep=True)
    async with client(server.serve, most=20) as http:
        await asked(http, 1)
        await asked(http, 40)
        assert server.now == server.accepted == 20


async def test_a_request_of_which_nothing_arrived_is_sent_on_another_connection(monkeypatch):
    monkeypatch.setattr(http1_pool, "ACCEPT_CHECK_SECONDS", 0.0)
    found = iter([True])
    monkeypatch.setattr("asyncsync.stores.http.byte_stream.nothing_acknowledged", lambda _: next(found, False))
    server, silent = Server(keep=True), []

    async def first_is_silent(reader, writer):
        if silent:
            await server.serve(reader, writer)
        else:
            silent.append(writer)
            await mute(reader, writer)

    async with client(first_is_silent) as http:
        assert (await http.send(b"GET / HTTP/1.1\r\n\r\n", None)).status == 200
    assert (server.accepted, len(silent), http.busy) == (1, 1, 0)


async def test_a_server_that_takes_nothing_is_given_up(monkeypatch):
    monkeypatch.setattr(http1_pool, "ACCEPT_CHECK_SECONDS", 0.0)
    monkeypatch.setattr("asyncsync.stores.http.byte_stream.nothing_acknowledged", lambda _: True)
    async with Wire(None).listening(mute, connect_timeout=0.2) as http:
        with pytest.raises(BrokenError, match="accepts no further connections"):
            await http.send(b"GET / HTTP/1.1\r\n\r\n", None)
    assert http.busy == 0


@pytest.mark.parametrize("again", [True, False])
async def test_a_connection_that_is_not_taken_at_once_is_tried_once_more(monkeypatch, again):
    start, tries = http1_pool.aiohappyeyeballs.start_connection, []

    async def slow(*args, **options):
        tries.append(args)
        if len(tries) > again:
            return await start(*args, **options)
        raise TimeoutError

    monkeypatch.setattr(http1_pool.aiohappyeyeballs, "start_connection", slow)
    server = Server(keep=True)
    async with client(server.serve) as http:
        await asked(http, 2)
    assert (http.busy, http._pool._fresh) == (0, 0)


async def test_a_server_that_cannot_be_reached_is_reported(monkeypatch):
    async def never(*args, **options):
        raise TimeoutError

    monkeypatch.setattr(http1_pool.aiohappyeyeballs, "start_connection", never)
    async with client(Server(keep=True).serve) as http:
        with pytest.raises(BrokenError, match="no connection within 5 s"):
            await http.send(b"GET / HTTP/1.1\r\n\r\n", None)
    assert (http.busy, http._pool._fresh) == (0, 0)
