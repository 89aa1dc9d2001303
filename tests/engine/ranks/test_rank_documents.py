"""Documents that ranks exchange through the store may be damaged or of a newer format: only that checkpoint fails, and
the error names the document.
"""

from contextlib import AsyncExitStack

import pytest
from onebench import Bench
from rankbench import N, all_report, check_shards, killed, rank, shard, together, world

from asyncsync.errors import CheckpointIncompleteError, DamagedError
from asyncsync.planning.manifest import MANIFEST
from asyncsync.planning.rank_agreement import claim_name, failure_name, part_name
from asyncsync.testing import run_virtual

PART = "t/checkpoint_000000/" + part_name(1, N)
WORD = "t/checkpoint_000000/" + failure_name(1, N)
DAMAGE = [b"", b"{", b"[" * 100_000, b'{"format":2,"by":"asyncsync 9.0"}', b'{"format":1,"kind":"cake","files":{}}']
damages = pytest.mark.parametrize("damage", DAMAGE, ids=lambda data: repr(data[:12]))


@damages
@pytest.mark.parametrize("key", [PART, WORD], ids=["part", "word"])
def test_a_damaged_part_or_word_fails_that_checkpoint_and_is_named(bench: Bench, key: str, damage: bytes) -> None:
    async def main() -> list[object]:
        async with AsyncExitStack() as stack:
            engines = await world(bench, stack)
            await bench.store.put(key, damage)
            errors = await together(*(engines[n].trial("t").report({}, shard(bench, n), step=0) for n in (0, 2)))
            assert await together(engines[1].trial("t").report({}, shard(bench, 1), step=0)) != []
            assert await all_report(bench, engines, "next") == ["checkpoint_000001"] * N
            return errors

    errors = run_virtual(main())
    assert any(isinstance(error, DamagedError) for error in errors)
    for error in errors:
        assert isinstance(error, DamagedError | CheckpointIncompleteError)
        assert f"{key} is " in str(error)
    assert f"t/checkpoint_000000/{MANIFEST}" not in bench.store.contents
    check_shards(bench, "checkpoint_000001", "next")


@damages
@pytest.mark.parametrize("key", [f"t/{claim_name(1)}", "t/.asyncsync/trial.json"], ids=["claim", "trial"])
def test_a_rank_that_comes_back_to_a_damaged_record_names_it(bench: Bench, key: str, damage: bytes) -> None:
    async def main() -> None:
        await killed(bench, lambda engines: all_report(bench, engines))
        await bench.store.put(key, damage)
        async with rank(bench, 1, resume=True, exit_grace=0.001) as engine:
            with pytest.raises(DamagedError, match=rf"{key} is "):
                await engine.trial("t").report({}, shard(bench, 1, "x"), step=1)
            raise ExceptionGroup("left", [KeyError()])

    with pytest.raises(ExceptionGroup, match="left"):
        run_virtual(main())
    assert bench.store.contents[key] == damage
