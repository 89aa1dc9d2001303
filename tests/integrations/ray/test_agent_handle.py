"""An agent as its clients see it, without Ray's processes: it is lost, silent, or refuses."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

pytest.importorskip("ray.exceptions", reason="Ray is not installed: run nox -s ray")
pytestmark = pytest.mark.filterwarnings("default")

import ray
from ray.exceptions import ActorDiedError, GetTimeoutError, RaySystemError, RayTaskError, TaskCancelledError

from asyncsync import ConcurrentWriterError, NotFoundError
from asyncsync.integrations.ray.agent import agent_handle, operations, process_storage
from asyncsync.integrations.ray.agent.actor import is_draining
from asyncsync.integrations.ray.agent.address import Address
from asyncsync.integrations.ray.agent.agent_handle import KnownAgents, NodeAgent, agent_name
from asyncsync.integrations.ray.agent.calls import Call, NotServedError
from asyncsync.runtime import Presence

PROGRAM = "from asyncsync.runtime import Presence; print(Presence().name, flush=True); input()"
CALL = Call(operations.is_file, ("a",), "caller", target="exp/c")


class Handle:
    """Stands for an actor: its calls return their own names, which ``fake_ray`` resolves."""

    class _Method:
        def __init__(self, name):
            self.remote = lambda *_: name

    run, hello = _Method("run"), _Method("hello")


@pytest.fixture
def fake_ray(monkeypatch):
    """What the calls of the agent lead to: a value, an error, nothing for None; or a function that returns it."""
    outcomes = {"run": None, "hello": None}

    def outcome(name):
        found = outcomes[name]
        return found() if callable(found) else found

    def wait(references, timeout):
        ready = [item for item in references if outcome(item) is not None]
        return ready, [item for item in references if item not in ready]

    def get(reference, timeout=None):
        found = outcome(reference)
        if isinstance(found, BaseException):
            raise found
        return found

    monkeypatch.setattr(ray, "wait", wait)
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "cancel", lambda _: None)
    return outcomes


@pytest.fixture
def process():
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as started:
        name = started.stdout.readline().decode().strip()
        yield started, name
        started.kill()


def test_a_call_returns_what_the_agent_returns(fake_ray):
    fake_ray["run"] = True
    assert NodeAgent(Handle(), "").run(CALL) is True


def test_an_error_of_the_agent_is_that_of_the_storage(fake_ray):
    fake_ray["run"] = RayTaskError("run", "traceback", NotFoundError("there is nothing"))
    with pytest.raises(NotFoundError, match="there is nothing"):
        NodeAgent(Handle(), "").run(CALL)


def test_a_head_out_of_reach_drains_no_node(monkeypatch):
    def get_draining_nodes():
        raise RaySystemError("the head is restarted")

    state = SimpleNamespace(state=SimpleNamespace(get_draining_nodes=get_draining_nodes))
    monkeypatch.setattr("ray._private.state", state)
    assert is_draining("node") is False


def test_an_attempt_that_was_replaced_hears_of_it(fake_ray):
    fake_ray["run"] = TaskCancelledError()
    with pytest.raises(ConcurrentWriterError, match="exp/c is written by a later attempt"):
        NodeAgent(Handle(), "").run(CALL)


def test_a_lost_agent_has_ended_before_the_worker_continues(fake_ray, process):
    """It may only have been out of reach: two must never upload the same checkpoint."""
    started, name = process
    fake_ray["run"] = ActorDiedError()
    with pytest.raises(NotServedError, match="was lost"):
        NodeAgent(Handle(), name).run(CALL)
    assert Presence.has_ended(name) and started.wait() < 0


def test_a_silent_agent_is_ended(fake_ray, process):
    started, name = process
    fake_ray["run"] = lambda: ActorDiedError() if Presence.has_ended(name) else None
    with pytest.raises(NotServedError):
        NodeAgent(Handle(), name).run(CALL)
    assert started.wait() < 0


def test_an_agent_that_is_busy_is_waited_for(fake_ray):
    answers = iter([None, None, "done", "done"])
    fake_ray |= {"run": lambda: next(answers), "hello": "its name"}
    assert NodeAgent(Handle(), "").run(CALL) == "done"


def test_a_worker_without_agent_does_it_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(agent_handle, "_is_worker", lambda: True)
    starts = []

    def start(address):
        starts.append(address)
        raise GetTimeoutError("no answer")

    monkeypatch.setattr(agent_handle, "start", start)
    monkeypatch.setattr(agent_handle, "_agents", KnownAgents())
    address = Address(str(tmp_path / "storage"))
    try:
        for _ in range(2):
            agent_handle.call(address, operations.write, "a", b"1")
        assert agent_handle.call(address, operations.read, "a") == b"1"
    finally:
        process_storage.close_all()
    assert starts == [address]  # the next try comes later


def test_secret_options_stay_in_the_process(monkeypatch):
    monkeypatch.setattr(agent_handle, "_is_worker", lambda: True)
    monkeypatch.setattr(agent_handle, "start", pytest.fail)
    assert KnownAgents().of(Address("s3://b/e", '{"secret_key": "x"}')) is None


def test_workers_with_other_credentials_have_another_agent(monkeypatch):
    names = {agent_name(Address("s3://b/e"), "node")}
    for variable, value in {"AWS_PROFILE": "other", "AWS_ACCESS_KEY_ID": "key"}.items():
        monkeypatch.setenv(variable, value)
        names.add(agent_name(Address("s3://b/e"), "node"))
    assert len(names) == 3
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a secret")  # says nothing that the key ID does not, and is secret
    assert agent_name(Address("s3://b/e"), "node") in names
