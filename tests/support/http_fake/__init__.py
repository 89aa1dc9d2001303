"""The base of the fakes of object stores: an HTTP server in a thread of its own."""

from http_fake.server import Fault, HttpFake, Reply, Seen, counted

__all__ = ["Fault", "HttpFake", "Reply", "Seen", "counted"]
