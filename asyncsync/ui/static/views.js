"use strict";
// What each part of the page shows. A view is a function that returns elements; drawings follow when they are in the page.

function tile(label, value, note = "", level = "") {
  return el("div", { class: `tile ${level}` }, el("div", { class: "label" }, label), el("div", { class: "value" }, value), el("div", { class: "note" }, note));
}

function facts(pairs) {
  return el("dl", { class: "facts" }, Object.entries(pairs).flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, show.number(value))]));
}

function trialLink(name) {
  return el("a", { href: `#trial=${encodeURIComponent(name)}` }, name);
}

function simpleTable(label, columns, rows) {
  const head = el("tr", {}, columns.map((name) => el("th", { scope: "col" }, name)));
  return el("div", { class: "wide" }, el("table", { "aria-label": label }, el("thead", {}, head), el("tbody", {}, rows.map((row) => el("tr", {}, row.map((cell) => el("td", {}, cell)))))));
}

function total(values) {
  return values.reduce((sum, value) => sum + (value ?? 0), 0);
}

// Overview

function overview({ live, experiment, table }) {
  const { values } = table;
  const engines = live.engines.filter((engine) => engine.alive);
  const moved = (name) => (engines.length ? show.bytes(total(engines.map((engine) => engine[name]))) : "-");
  const why = engines.length ? "since the engine was entered" : "only a running engine knows";
  const risk = live.at_risk;
  const latest = values["last durable"].reduce((best, time) => Math.max(best, time ?? 0), 0);
  return [
    el("section", { class: "tiles", "aria-label": "Overview" },
      tile("Worst lag", engines.length ? show.seconds(risk.lag) : "-", engines.length ? "age of the oldest report not in the store" : why, risk.lag ? "risk" : ""),
      tile("At risk", engines.length ? show.bytes(risk.bytes) : "-", engines.length ? show.count(risk.checkpoints, "pending checkpoint") : why, risk.bytes ? "risk" : ""),
      tile("Last durable", show.ago(latest), "newest checkpoint in the store"),
      tile("Stored", show.bytes(total(values.size)), show.count(total(values.checkpoints), "checkpoint")),
      tile("Sent", moved("sent"), why),
      tile("Copied", moved("copied"), "inside the store"),
      tile("Saved by delta", moved("saved"), "bytes that did not travel"),
      tile("Trials", values.trial.length.toLocaleString("en"), statusCounts(values.status).map(([status, count]) => `${count.toLocaleString("en")} ${status}`).join(", ")),
    ),
    bestTrial(experiment, table),
    failures(table),
    ...live.engines.map(engineCard),
    el("section", {}, el("h2", {}, "Experiment"), facts({ Address: experiment.uri, Status: experiment.status, Started: show.moment(experiment.started), "Last heartbeat": show.moment(experiment.heartbeat), Retention: experiment.retention })),
  ];
}

function statusCounts(statuses) {
  const counts = new Map();
  for (const status of statuses) counts.set(status, (counts.get(status) ?? 0) + 1);
  return [...counts].sort((a, b) => b[1] - a[1]);
}

function bestTrial(experiment, table) {
  const id = experiment.score && `metric:${experiment.score}`;
  const values = id && table.values[id];
  if (!values) return null;
  const [best] = Columns.sorted([...values.keys()], values, experiment.order === "max");
  if (best === undefined || Number.isNaN(numberOf(values[best]) ?? NaN)) return null;
  return el("section", {}, el("h2", {}, "Best trial now"), el("p", {}, trialLink(table.values.trial[best]), `: ${experiment.score} = ${show.number(values[best])} (${experiment.order}, by the last report)`));
}

function failures(table) {
  const errors = table.values.error ?? [];
  const rows = [...errors.keys()].filter((row) => errors[row]);
  if (!rows.length) return null;
  const shown = rows.slice(0, 10).map((row) => [trialLink(table.values.trial[row]), table.values.status[row], errors[row]]);
  return el("section", {}, el("h2", {}, `Errors of ${show.count(rows.length, "trial")}`), simpleTable("Errors", ["trial", "status", "error"], shown));
}

function engineCard(engine) {
  const notes = [engine.waiting_for && `waits for ${engine.waiting_for}`, engine.last_error && `last error: ${engine.last_error}`].filter(Boolean);
  return el("section", {},
    el("h2", {}, `Engine: ${engine.role}${engine.rank ? `, rank ${engine.rank}` : ""}, process ${engine.pid}`, el("span", { class: `status ${engine.alive ? "running" : "bad"}` }, engine.alive ? "running" : "killed")),
    facts({ "Local directory": engine.local_dir, Started: show.moment(engine.started), "Status written": show.ago(engine.written), Requests: engine.requests, "Failed requests": engine.errors, Retries: engine.retries, "Checkpoints durable": engine.durable, "Checkpoints failed": engine.failed }),
    notes.map((text) => el("p", { class: "note" }, text)),
    engine.behind.length ? simpleTable("Trials with work at risk", ["trial", "pending", "size", "lag", "last durable"], engine.behind.map((trial) => [trialLink(trial.name), String(trial.pending), show.bytes(trial.bytes), show.seconds(trial.lag), trial.last === null ? "-" : `checkpoint ${trial.last}`])) : null,
  );
}

// One trial

function trialView(trial, options) {
  const names = Object.keys(trial.curves ?? {});
  const grid = el("div", { class: "curves" });
  const redraw = () => {
    const shown = options.all ? names : names.slice(0, 6);
    grid.replaceChildren(...shown.map((name) => el("figure", {}, el("figcaption", {}, name, notFinite(trial, name)), el("div", { class: "plot" }))));
    shown.forEach((name, place) => drawCurves(grid.children[place].lastChild, [{ name, ...trial.curves[name] }], options));
  };
  later(redraw);
  return [
    el("h1", {}, trial.name, el("span", { class: `status ${statusClass(trial.status)}` }, trial.status)),
    trial.error ? el("pre", { class: "failure" }, trial.error) : null,
    el("p", { class: "note" }, `${show.count(trial.reports, "report")}, started ${show.moment(trial.started)}, record of ${show.moment(trial.updated)}. ${trial.rows !== undefined ? `${show.count(trial.rows, "row")} of result.json in the store.` : ""}`),
    trial.unread ? el("p", { class: "note bad" }, `The curves cannot be read: ${trial.unread}`) : null,
    names.length ? el("section", {}, el("h2", {}, "Curves"), curveOptions(options, redraw, names.length), grid) : null,
    ...Object.keys(trial.not_finite ?? {}).filter((name) => !names.includes(name)).map((name) => el("p", { class: "note bad" }, `${name}: no curve,`, notFinite(trial, name))),
    el("section", {}, el("h2", {}, "Checkpoints"), checkpointTable(trial)),
    trial.durable?.length ? el("section", {}, el("h2", {}, "Durability lag"), el("p", { class: "note" }, "From the report of each listed checkpoint until it was durable; reports are dated to the second."), durationPlot(trial.durable)) : null,
    el("section", { class: "columns" }, el("div", {}, el("h2", {}, "Parameters"), facts(trial.params)), el("div", {}, el("h2", {}, "Last report"), facts(trial.metrics))),
  ];
}

function notFinite(trial, name) {
  const count = trial.not_finite?.[name];
  return count ? el("span", { class: "note" }, ` ${show.count(count, "value")} NaN or infinite`) : null;
}

function durationPlot(durable) {
  const place = el("div", { class: "plot" });
  later(() => drawDurations(place, durable.map(({ name, reported, durable: to }) => ({ name, from: reported, to }))));
  return place;
}

/** Log scale, smoothing, and whether all curves are shown. */
function curveOptions(options, redraw, curves = 0) {
  const change = (name, value) => {
    options[name] = value;
    redraw();
  };
  const log = el("input", { type: "checkbox", onchange: () => change("log", log.checked) });
  const all = el("input", { type: "checkbox", onchange: () => change("all", all.checked) });
  const smoothing = el("input", { type: "range", min: "0", max: "0.98", step: "0.02", oninput: () => change("smoothing", Number(smoothing.value)) });
  [log.checked, all.checked, smoothing.value] = [Boolean(options.log), Boolean(options.all), options.smoothing ?? 0];
  return el("div", { class: "options" }, el("label", {}, log, "log scale"), el("label", {}, "smoothing", smoothing), curves > 6 ? el("label", {}, all, `all ${curves} curves`) : null);
}

function checkpointTable(trial) {
  if (!trial.checkpoints.length) return el("p", { class: "note" }, "No checkpoint is in the store.");
  const metrics = [...new Set(trial.checkpoints.flatMap((item) => Object.keys(item.metrics)))].slice(0, 4);
  const rows = [...trial.checkpoints].reverse().map((item, place) => [
    item.name,
    item.step === null ? "-" : String(item.step),
    marks(item, place === 0),
    ...metrics.map((name) => show.number(item.metrics[name])),
    show.bytes(item.bytes),
    show.ago(item.time),
    el("div", { class: "actions" }, copyButton("Copy download command", `asyncsync pull ${quoted(item.uri)} ${quoted(`./${item.name}`)}`), actions.buttons(trial, item)),
  ]);
  const gone = trial.given_up.length ? el("details", {}, el("summary", {}, `${show.count(trial.given_up.length, "retired or abandoned checkpoint")}`), el("p", { class: "note" }, trial.given_up.join(", "))) : null;
  return [simpleTable("Checkpoints", ["checkpoint", "step", "", ...metrics, "size", "durable", ""], rows), gone];
}

function marks(item, newest) {
  const verified = actions.verified.get(item.uri);
  const texts = [item.best && "best", newest && "latest", item.pinned && "pinned", item.removed_next ? "removed next" : "kept"];
  const found = texts.filter(Boolean).map((text) => el("span", { class: `mark ${text.split(" ")[0]}` }, text));
  found.push(...item.tags.map((name) => el("span", { class: "mark tag" }, name)));
  if (verified) found.push(el("span", { class: `mark ${verified.ok ? "verified" : "bad"}`, title: verified.text }, verified.ok ? `verified ${show.ago(verified.time)}` : "damaged"));
  return el("span", { class: "marks" }, found);
}

// Comparison

function compareView(names, table, options, fetchTrial) {
  const place = el("div");
  const known = names.filter((name) => table.values.trial.includes(name));
  if (known.length) Promise.all(known.slice(0, 20).map(fetchTrial)).then((trials) => place.replaceChildren(...compared(trials.filter(Boolean), options)));
  const note = known.length ? `${show.count(known.length, "trial")} chosen${known.length > 20 ? "; the curves of the first 20 are shown" : ""}.` : "Choose trials in the table with their boxes, or with the space bar. Without a choice the drawing shows the trials of the filter.";
  return [el("h1", {}, "Comparison"), el("p", { class: "note" }, note), place, parallelSection(known, table, options)];
}

function compared(trials, options) {
  const names = [...new Set(trials.flatMap((trial) => Object.keys(trial.curves ?? {})))];
  if (!names.length) return [el("p", { class: "note" }, data.constructor.live ? "These trials have no curves in the store." : "The report holds no curves of these trials.")];
  const grid = el("div", { class: "curves" });
  const redraw = () => {
    const shown = options.all ? names : names.slice(0, 6);
    grid.replaceChildren(...shown.map((name) => el("figure", {}, el("figcaption", {}, name), el("div", { class: "plot" }))));
    shown.forEach((name, number) => {
      const series = trials.filter((trial) => trial.curves?.[name]).map((trial) => ({ name: trial.name, ...trial.curves[name] }));
      drawCurves(grid.children[number].lastChild, series, options);
    });
  };
  later(redraw);
  return [curveOptions(options, redraw, names.length), grid];
}

const MOST_LINES = 2000;

function parallelSection(known, table, options) {
  const params = table.columns.filter((column) => column.kind === "param").map((column) => column.id);
  const metrics = table.columns.filter((column) => column.kind === "metric" && !/training_iteration|time_/.test(column.id)).map((column) => column.id);
  const place = el("div", { class: "plot tall" });
  const columns = new Columns(table);
  const byName = new Map(table.values.trial.map((name, row) => [name, row]));
  const rows = known.length > 1 ? known.map((name) => byName.get(name)) : columns.rows(new Filter(options.filter, columns), {});
  const common = (id) => rows.filter((row) => table.values[id][row] !== null).length > rows.length / 2;
  const varied = params.filter((id) => common(id) && new Set(rows.map((row) => table.values[id][row])).size > 1).slice(0, 9);
  if (!varied.length) return el("p", { class: "note" }, "No parameter differs between these trials.");
  const choice = el("select", { onchange: () => ((options.parallel = choice.value), redraw()) }, metrics.map((id) => el("option", { value: id }, shortened(titleOf(id)))));
  choice.value = metrics.includes(options.parallel) ? options.parallel : (metrics[0] ?? "");
  const redraw = () => {
    const ids = [...varied, choice.value].filter(Boolean);
    const there = (id, row) => table.values[id][row] !== null && Number.isFinite(numberOf(table.values[id][row]) ?? 0);
    const whole = rows.filter((row) => ids.every((id) => there(id, row))).slice(0, MOST_LINES);
    if (!whole.length) return place.replaceChildren(el("p", { class: "note" }, "No trial has all of these values."));
    drawParallel(place, whole.map((row) => ids.map((id) => table.values[id][row])), ids.map(titleOf), titleOf(choice.value));
  };
  later(redraw);
  const more = rows.length > MOST_LINES ? ` The first ${MOST_LINES.toLocaleString("en")} of ${rows.length.toLocaleString("en")} are drawn.` : "";
  return el("section", {}, el("h2", {}, "Parameters"), el("div", { class: "options" }, el("label", {}, "metric", choice), el("span", { class: "note" }, `Drag along an axis to choose a range.${more}`)), place);
}

// Storage

function storageView({ experiment, table }, listing) {
  const { values } = table;
  const goes = total(values["removed next"]);
  const largest = [...values.size.keys()].sort((a, b) => values.size[b] - values.size[a]).slice(0, 25);
  const rows = largest.filter((row) => values.size[row]).map((row) => [trialLink(values.trial[row]), bar(values.size[row], values.size[largest[0]]), show.bytes(values.size[row]), String(values.checkpoints[row]), show.bytes(values["removed next"][row] || null)]);
  return [
    el("h1", {}, "Storage"),
    el("section", { class: "tiles" },
      tile("Checkpoints", show.bytes(total(values.size)), `${show.count(total(values.checkpoints), "checkpoint")}, ${table.pinned} pinned`),
      tile("Removed next", show.bytes(goes), "when the running trials report better checkpoints"),
      tile("Removed so far", table.given_up.toLocaleString("en"), "checkpoints retired or abandoned"),
    ),
    el("p", { class: "note" }, experiment.retention),
    rows.length ? el("section", {}, el("h2", {}, "The largest trials"), simpleTable("The largest trials", ["trial", "", "checkpoints", "number", "removed next"], rows)) : el("p", { class: "note" }, "No checkpoint is in the store."),
    listing,
  ];
}

function bar(value, most) {
  const inner = el("div", { class: "bar" });
  inner.style.width = `${most ? Math.max(1, (100 * value) / most) : 0}%`;
  return el("div", { class: "bars", "aria-hidden": "true" }, inner);
}

/** What a listing of every object found, beside what the records name. */
function listingView(found) {
  const rows = found.rows.map((row) => [row.name, bar(row.bytes, found.rows[0].bytes), show.bytes(row.bytes), show.bytes(row.checkpoints), show.bytes(row.other), show.bytes(row.unlisted || null)]);
  return [el("p", { class: "note" }, `${show.count(found.objects, "object")}, ${show.bytes(found.bytes)} in all. "Not listed" is data of checkpoints that no record names: uploads that run, or remains that asyncsync prune removes.`), simpleTable("Every object", ["below", "", "all", "checkpoints", "other files", "not listed"], rows)];
}

// Transfers

function transfersView({ live }, samples) {
  const engines = live.engines.filter((engine) => engine.alive);
  if (!engines.length) return [el("h1", {}, "Transfers"), el("p", { class: "note" }, "No engine of this experiment runs on this machine.")];
  const parts = [["Bytes per second", [["rate", "rate"]]], ["Requests", [["in flight", "in_flight"], ["waiting", "waiting"], ["limit", "limit"]]], ["Durability lag, seconds", [["lag", "lag"]]], ["Bytes at risk", [["at risk", "bytes_at_risk"]]]];
  const figures = data.constructor.live
    ? parts.map(([title, lines]) => {
        const place = el("div", { class: "plot" });
        later(() => drawTimeline(place, lines.map(([name, key]) => ({ name, x: samples.map((one) => one.now), y: samples.map((one) => one[key]) })), title));
        return el("figure", {}, el("figcaption", {}, title), place);
      })
    : [];
  return [el("h1", {}, "Transfers"), el("p", { class: "note" }, data.constructor.live ? "One sample a second while the page is open." : "The state when the report was written."), el("div", { class: "curves" }, figures), ...engines.map(engineCard)];
}
