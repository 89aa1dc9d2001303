"""The page in a real headless Chromium."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from onebench import Bench
from stored import put_tree

from asyncsync import pin
from asyncsync.planning.document import TRIAL_RECORD
from asyncsync.sync.records.model import TrialRecord
from asyncsync.ui import serve, write_report

from .conftest import ATTACK, URI, wait_until_read

pytestmark = pytest.mark.slow
DRAWN = {
    "#overview": ".tile",
    "#trials": ".scroll",
    "#storage": ".tile",
    "#transfers": ".note",
    "#trial=hostile": "pre.failure",
    "#compare": ".parallel polyline",
}
"""The parts of the page, and what shows that each one is drawn."""


async def names(page: Any) -> list[str]:
    """The trials in view, from the top."""
    return await page.locator(".trials tbody td.name").all_inner_texts()


async def test_no_text_of_a_record_runs(sweep: Bench, chromium: Any) -> None:
    async with serve(URI) as address:
        await wait_until_read(address)
        async with chromium(address) as page:
            for part, drawn in DRAWN.items():
                await page.goto(address + part)
                await page.wait_for_selector(drawn)
                assert await page.evaluate("window.hacked") is None, part
                assert await page.locator("main img").count() == 0
            await page.goto(f"{address}#trial=hostile")
            assert ATTACK in await page.locator("pre.failure").inner_text()
            await page.wait_for_selector(".plot .main-svg")
            assert await page.evaluate("window.hacked") is None


async def test_no_name_looks_like_another(bench: Bench, chromium: Any) -> None:
    """A character that turns the direction of writing is shown, not obeyed; a name of JavaScript is a name."""
    turned, own = "\u202eevil\u202c", "__proto__"
    for name in (turned, own):
        record = TrialRecord(name, "exp", "finished", params={own: 1.0 if name == own else 2.0}, metrics={own: 1.0})
        await bench.store.put(f"{name}/{TRIAL_RECORD}", record.to_bytes())
        await put_tree(bench.store, f"{name}/", {"result.json": b'{"__proto__": 1.0}\n{"__proto__": 0.5}\n'})
    async with serve(URI) as address:
        await wait_until_read(address)
        async with chromium(f"{address}#trials") as page:
            await page.wait_for_selector(".trials tbody td.name")
            assert await names(page) == [own, "\\u202eevil\\u202c"]
            await page.get_by_role("link", name="evil").click()
            await page.wait_for_selector(".plot .main-svg .scatterlayer .trace")
            await page.goto(f"{address}#compare")
            await page.wait_for_selector(".parallel polyline")
            assert await page.locator(".parallel polyline.off").count() == 0


async def test_the_curves_of_a_trial_are_drawn(sweep: Bench, chromium: Any) -> None:
    async with serve(URI) as address:
        await wait_until_read(address)
        async with chromium(f"{address}#trial=t1") as page:
            await page.wait_for_selector(".plot .main-svg .scatterlayer .trace")
            await page.get_by_label("log scale").check()
            await page.wait_for_selector(".plot .main-svg")
            assert await page.get_by_text("checkpoint_000005").count() >= 1


async def test_a_slider_stays_in_the_hand_that_drags_it(sweep: Bench, chromium: Any) -> None:
    """Each step draws the curves again, but puts no new slider in the place of the one that is held."""
    async with serve(URI) as address:
        await wait_until_read(address)
        async with chromium(f"{address}#trial=t1") as page:
            await page.wait_for_selector(".plot .main-svg .scatterlayer .trace")
            slider = await page.query_selector("input[type=range]")
            place = await slider.bounding_box()
            height = place["y"] + place["height"] / 2
            await page.mouse.move(place["x"] + 4, height)
            await page.mouse.down()
            await page.mouse.move(place["x"] + place["width"] - 4, height, steps=8)
            await page.mouse.up()
            assert await slider.evaluate("slider => slider.isConnected")
            assert float(await slider.input_value()) > 0.9


async def test_trials_are_sorted_and_filtered_by_keyboard(sweep: Bench, chromium: Any) -> None:
    async with serve(URI) as address:
        await wait_until_read(address)
        async with chromium(f"{address}#trials") as page:
            await page.wait_for_selector(".trials tbody td.name")
            await page.get_by_role("button", name="lr", exact=True).focus()
            await page.keyboard.press("Enter")
            assert await names(page) == ["t0", "t1", "t2", "hostile"]
            await page.keyboard.press("Enter")
            assert await names(page) == ["t2", "t1", "t0", "hostile"]
            await page.keyboard.press("Escape")
            await page.locator("#search").focus()
            await page.keyboard.type("status=finished lr>=0.1")
            assert await names(page) == ["t1"]
            await page.keyboard.press("Control+A")
            await page.keyboard.type("hostile")
            assert await names(page) == ["hostile"]
            await page.locator(".trials tbody tr[tabindex='0']").focus()
            await page.keyboard.press("Space")
            await page.wait_for_selector("nav a:has-text('Compare (1)')")
            await page.keyboard.press("Enter")
            await page.wait_for_selector("pre.failure")


async def test_chosen_trials_are_compared(sweep: Bench, chromium: Any) -> None:
    async with serve(URI) as address:
        await wait_until_read(address)
        async with chromium(f"{address}#trials") as page:
            for name in ("t0", "t1"):
                await page.get_by_label(f"Compare {name}").check()
            await page.get_by_role("link", name="Compare (2)").click()
            await page.wait_for_selector(".plot .main-svg .scatterlayer .trace >> nth=1")
            assert await page.locator(".parallel polyline").count() == 2


async def test_a_range_on_an_axis_leaves_out_the_other_trials(sweep: Bench, chromium: Any) -> None:
    async with serve(URI) as address:
        await wait_until_read(address)
        async with chromium(f"{address}#compare") as page:
            await page.wait_for_selector(".parallel polyline")
            place = await page.locator(".grip").first.bounding_box()
            await page.mouse.move(place["x"] + 5, place["y"] + 1)
            await page.mouse.down()
            await page.mouse.move(place["x"] + 5, place["y"] + place["height"] / 4)
            await page.mouse.up()
            assert await page.locator(".parallel polyline.off").count() == 2
            await page.mouse.click(place["x"] + 5, place["y"] + 5)
            assert await page.locator(".parallel polyline.off").count() == 0


async def test_what_the_user_does_outlives_new_data(sweep: Bench, chromium: Any) -> None:
    """An option, the focus and an open part stay when the records are read again; the checkpoints are the new ones."""
    async with serve(URI, allow_changes=True) as address:
        await wait_until_read(address)
        async with chromium(f"{address}#trial=t0") as page:
            await page.wait_for_selector(".plot .main-svg .scatterlayer .trace")
            await page.get_by_label("log scale").check()
            await page.get_by_label("log scale").focus()
            await pin(f"{URI}/t0/checkpoint_000000")
            await page.get_by_role("button", name="Read again").dispatch_event("click")
            await page.wait_for_selector(".mark.pinned")
            assert await page.get_by_label("log scale").is_checked()
            assert await page.evaluate("document.activeElement.type") == "checkbox"


async def test_ten_thousand_trials_are_a_few_elements(many: int, chromium: Any) -> None:
    async with serve(URI) as address:
        await wait_until_read(address)
        async with chromium(f"{address}#trials") as page:
            await page.wait_for_selector(".trials tbody td.name")
            assert await page.get_by_text("10,000 of 10,000").count() == 1
            assert await page.locator(".trials tbody tr").count() < 80
            await page.get_by_role("button", name="loss").click()
            (first, *_) = await names(page)
            assert first == "trial_00000"
            await page.locator(".scroll").evaluate("box => (box.scrollTop = box.scrollHeight)")
            await page.wait_for_selector("tr[aria-rowindex='10001']")
            assert await page.locator(".trials tbody tr").count() < 80


async def test_a_checkpoint_is_verified_and_retired_from_the_page(sweep: Bench, chromium: Any) -> None:
    async with serve(URI, allow_changes=True) as address:
        await wait_until_read(address)
        async with chromium(f"{address}#trial=t0") as page:
            page.on("dialog", lambda dialog: dialog.accept())
            await page.get_by_role("button", name="Verify").first.click()
            await page.wait_for_selector(".mark.verified")
            await page.get_by_role("button", name="Retire").last.click()
            await page.wait_for_selector("summary:has-text('1 retired')")
    assert not sweep.keys("t0/checkpoint_000000/weights")


async def test_a_page_without_changes_has_no_such_button(sweep: Bench, chromium: Any) -> None:
    async with serve(URI) as address:
        await wait_until_read(address)
        async with chromium(f"{address}#trial=t0") as page:
            await page.get_by_role("button", name="Copy download command").first.wait_for()
            for name in ("Verify", "Retire", "Pin"):
                assert await page.get_by_role("button", name=name).count() == 0


async def test_the_report_is_the_page_without_a_server(sweep: Bench, chromium: Any, tmp_path: Path) -> None:
    await write_report(URI, tmp_path / "r.html")
    async with chromium(f"file://{tmp_path}/r.html#trial=hostile") as page:
        await page.wait_for_selector(".plot .main-svg .scatterlayer .trace")
        assert await page.evaluate("window.hacked") is None
        await page.goto(f"file://{tmp_path}/r.html#trials")
        await page.wait_for_selector(".trials tbody td.name")
        assert await names(page) == ["hostile", "t0", "t1", "t2"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_nothing_is_wider_than_a_phone(sweep: Bench, chromium: Any, scheme: str) -> None:
    async with serve(URI) as address:
        await wait_until_read(address)
        async with chromium(address, viewport={"width": 360, "height": 740}, color_scheme=scheme) as page:
            for part, drawn in DRAWN.items():
                await page.goto(address + part)
                await page.wait_for_selector(drawn)
                assert await page.evaluate("document.documentElement.scrollWidth") <= 360, part


async def test_the_page_says_that_its_server_has_ended(sweep: Bench, chromium: Any) -> None:
    async with serve(URI) as address:
        await wait_until_read(address)
        opened = chromium(address)
        page = await opened.__aenter__()
        await page.wait_for_selector(".verdict.safe")
    await page.wait_for_selector(".verdict.unknown:has-text('lost its server')")
    await opened.__aexit__(None, None, None)
