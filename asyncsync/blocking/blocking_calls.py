"""The functions of ``asyncsync`` that do one thing, without ``await``."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from asyncsync.aio.loop_thread import run_to_end
from asyncsync.config import TransferConfig
from asyncsync.remote.access import DEFAULT_TRANSFER
from asyncsync.remote.manage.browse import browse as browse_async
from asyncsync.remote.manage.browse import read_object as read_object_async
from asyncsync.remote.manage.copy_objects import copy as copy_async
from asyncsync.remote.manage.diagnose import diagnose as diagnose_async
from asyncsync.remote.manage.pull_preview import plan_pull as plan_pull_async
from asyncsync.remote.manage.remove import remove as remove_async
from asyncsync.remote.prune import prune as prune_async
from asyncsync.remote.pull import pull as pull_async
from asyncsync.remote.repair import repair as repair_async
from asyncsync.remote.verify import verify as verify_async
from asyncsync.remote.views.checkpoint_marks import pin as pin_async
from asyncsync.remote.views.checkpoint_marks import tag as tag_async
from asyncsync.remote.views.checkpoint_marks import unpin as unpin_async
from asyncsync.sync.syncer import push as push_async

P = ParamSpec("P")
T = TypeVar("T")


def without_await(func: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """The same function for programs that are not async: same parameters, result, errors and documentation."""

    @wraps(func)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        return run_to_end(func, *args, **kwargs)

    return call


push = without_await(push_async)
pull = without_await(pull_async)
plan_pull = without_await(plan_pull_async)
verify = without_await(verify_async)
repair = without_await(repair_async)
prune = without_await(prune_async)
copy = without_await(copy_async)
remove = without_await(remove_async)
pin = without_await(pin_async)
unpin = without_await(unpin_async)
tag = without_await(tag_async)
browse = without_await(browse_async)
diagnose = without_await(diagnose_async)


def read_object(
    uri: str | os.PathLike[str],
    sink: Callable[[bytes], object],
    *,
    storage_options: Mapping[str, object] | None = None,
    transfer: TransferConfig = DEFAULT_TRANSFER,
) -> int:
    """As :func:`asyncsync.read_object`. ``sink`` is a plain function; the next piece is read when it returns."""

    async def take(piece: bytes) -> None:
        sink(piece)

    return run_to_end(read_object_async, uri, take, storage_options=storage_options, transfer=transfer)
