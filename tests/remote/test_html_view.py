"""Views in a notebook: a table, a curve, and no text that becomes markup."""

from __future__ import annotations

import math
import xml.dom.minidom

import pytest
from onebench import Bench

from asyncsync import Experiment, blocking
from asyncsync.remote.views.html_view import ROWS_SHOWN, WIDTH, curve_svg
from asyncsync.testing import run_virtual

HOSTILE = '<img src=x onerror="alert(1)">'


def parsed(html: str) -> xml.dom.minidom.Document:
    """The HTML, which is XML too but for one attribute without quotes."""
    return xml.dom.minidom.parseString(html.replace("colspan=", 'colspan="').replace(">and ", '">and '))


async def sweep(bench: Bench, trials: int = 1, reports: int = 6) -> Experiment:
    async with bench.engine() as engine:
        for number in range(trials):
            trial = engine.trial(f"t{number:03}", params={HOSTILE: HOSTILE})
            for step in range(reports):
                await trial.report({"loss": 1.0 / (step + 1), HOSTILE: "</td>", "nan": math.nan})
            await trial.finish()
    return await Experiment.open("memory://b/exp")


def test_no_text_of_a_record_becomes_markup(bench: Bench) -> None:
    experiment = run_virtual(sweep(bench))
    for html in (experiment._repr_html_(), experiment.trials[0]._repr_html_()):
        assert "&lt;img" in html
        assert not parsed(html).getElementsByTagName("img")


def test_a_trial_has_a_curve_of_its_reports_once_they_are_read(bench: Bench) -> None:
    async def main() -> tuple[str, str]:
        trial = (await sweep(bench)).trials[0]
        before = trial._repr_html_()
        await trial.history()
        return before, trial._repr_html_()

    before, after = run_virtual(main())
    assert "<svg" not in before  # it has no checkpoint
    (line,) = parsed(after).getElementsByTagName("polyline")
    assert len(line.getAttribute("points").split()) == 7  # the last point stands twice


def test_an_experiment_shows_its_first_trials_and_counts_the_rest(bench: Bench) -> None:
    html = run_virtual(sweep(bench, trials=ROWS_SHOWN + 3, reports=1))._repr_html_()
    assert html.count("<tr>") == 1 + ROWS_SHOWN + 1
    assert "and 3 more" in html


def test_the_blocking_views_show_the_same(bench: Bench) -> None:
    experiment = run_virtual(sweep(bench))
    stored = blocking.Experiment(experiment)
    assert stored._repr_html_() == experiment._repr_html_()
    assert stored.trials[0]._repr_html_() == experiment.trials[0]._repr_html_()


@pytest.mark.parametrize(
    "values",
    [[1e308, -1e308, 1e308], [5.0] * 4, [0.0, 5e-324], list(range(100_000))],
    ids=["wide", "flat", "tiny", "long"],
)
def test_a_curve_stays_inside_its_picture(values: list[float]) -> None:
    svg = curve_svg(list(enumerate(values)), HOSTILE)
    (line,) = xml.dom.minidom.parseString(svg).getElementsByTagName("polyline")
    points = [[float(part) for part in point.split(",")] for point in line.getAttribute("points").split()]
    assert len(points) <= 250
    assert all(0 <= x <= WIDTH and 0 <= y <= WIDTH for x, y in points)


def test_a_running_trial_of_a_left_engine_is_unfinished(bench: Bench) -> None:
    async def main() -> Experiment:
        async with bench.engine() as engine:
            await engine.trial("t").report({"loss": 1.0})
        return await Experiment.open("memory://b/exp")

    experiment = run_virtual(main())
    assert [trial.shown_status for trial in experiment.trials] == ["unfinished"]
    assert "unfinished" in experiment._repr_html_()
    assert experiment.config["checkpoint"]["num_to_keep"] is None
    assert experiment.heartbeat > 0
