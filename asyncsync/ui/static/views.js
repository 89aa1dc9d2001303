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
  const known = engines.length || risk.lag || risk.bytes;
  const then = engines.length ? "" : ", when it was killed";
  const latest = values["last durable"].reduce((best, time) => Math.max(best, time ?? 0), 0);
  return [
    el("section", { class: "tiles", "aria-label": "Overview" },
      tile("Worst lag", known ? show.seconds(risk.lag) : "-", known ? `age of the oldest report not in the store${then}` : why, risk.lag ? "risk" : ""),
      tile("At risk", known ? show.bytes(risk.bytes) : "-", known ? `${show.count(risk.checkpoints, "pending checkpoint")}${then}` : why, risk.bytes ? "risk" : ""),
      tile("Last durable", show.ago(latest), "newest checkpoint in the store"),
      tile("Stored", show.bytes(total(values.size)), show.count(total(values.checkpoints), "checkpoint")),
      tile("Sent", moved("sent"), why),
      tile("Copied", moved("copied"), "inside the store"),
      tile("Saved by delta", moved("saved"), "bytes that did not travel"),
      tile("Trials", values.trial.length.toLocaleString("en"), statusCounts(values.status).map(([status, count]) => `${count.toLocaleString("en")} ${status}`).join(", ")),
    ),
    bestTrials(experiment, table),
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

const BEST_SHOWN = 5;

function bestTrials(experiment, table) {
  const id = experiment.score && `metric:${experiment.score}`;
  const values = id && table.values[id];
  if (!values) return null;
  const ordered = Columns.sorted([...values.keys()], values, experiment.order === "max");
  const best = ordered.filter((row) => !Number.isNaN(numberOf(values[row]) ?? NaN)).slice(0, BEST_SHOWN);
  if (!best.length) return null;
  const params = table.columns.filter((column) => column.kind === "param").slice(0, 5).map((column) => column.id);
  const rows = best.map((row) => [trialLink(table.values.trial[row]), show.number(values[row]), table.values.status[row], ...params.map((param) => show.number(table.values[param][row])), show.ago(table.values["last durable"][row])]);
  return el("section", {}, el("h2", {}, `Best trials now, by the last ${experiment.score} (${experiment.order})`), simpleTable("Best trials", ["trial", experiment.score, "status", ...params.map(titleOf), "last durable"], rows));
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

function trialView(trial, options, change) {
  const names = Object.keys(trial.curves ?? {});
  return [
    el("h1", {}, trial.name, el("span", { class: `status ${statusClass(trial.status)}` }, trial.status)),
    trial.error ? el("pre", { class: "failure" }, trial.error) : null,
    el("p", { class: "note" }, `${show.count(trial.reports, "report")}, started ${show.moment(trial.started)}, record of ${show.moment(trial.updated)}. ${trial.rows !== undefined ? `${show.count(trial.rows, "row")} of result.json in the store.` : ""}`),
    trial.unread ? el("p", { class: "note bad" }, `The curves cannot be read: ${trial.unread}`) : null,
    names.length ? el("section", {}, el("h2", {}, "Curves"), curveOptions(options, change, names.length), curveGrid(names, [trial], options)) : null,
    ...Object.keys(trial.not_finite ?? {}).filter((name) => !names.includes(name)).map((name) => el("p", { class: "note bad" }, `${name}: no curve,`, notFinite(trial, name))),
    el("section", {}, el("h2", {}, "Checkpoints"), checkpointTable(trial)),
    trial.durable?.length ? el("section", {}, el("h2", {}, "Durability lag"), el("p", { class: "note" }, "From the report of each listed checkpoint until it was durable; reports are dated to the second."), durationPlot(trial.durable)) : null,
    el("section", { class: "columns" }, el("div", {}, el("h2", {}, "Parameters"), facts(trial.params)), el("div", {}, el("h2", {}, "Last report"), facts(trial.metrics))),
  ];
}

/** A drawing for each metric, with the curves of all trials that have it. */
function curveGrid(names, trials, options) {
  const shown = options.all ? names : names.slice(0, MOST_CURVES);
  const figures = shown.map((name) => {
    const place = el("div", { class: "plot" });
    const series = trials.filter((trial) => trial.curves?.[name]).map((trial) => ({ name: trials.length > 1 ? trial.name : name, ...trial.curves[name] }));
    later(() => drawCurves(place, series, options));
    return el("figure", {}, el("figcaption", {}, name, trials.length > 1 ? null : notFinite(trials[0], name)), place);
  });
  return el("div", { class: "curves" }, figures);
}

const MOST_CURVES = 6;

function notFinite(trial, name) {
  const count = trial.not_finite?.[name];
  return count ? el("span", { class: "note" }, ` ${show.count(count, "value")} NaN or infinite`) : null;
}

function durationPlot(durable) {
  const place = el("div", { class: "plot" });
  later(() => drawDurations(place, durable.map(({ name, reported, durable: to }) => ({ name, from: reported, to }))));
  return place;
}

/** Log scale, smoothing, and whether all curves are shown. `change(name, value)` sets an option. */
function curveOptions(options, change, curves = 0) {
  const log = el("input", { type: "checkbox", checked: Boolean(options.log), onchange: () => change("log", log.checked) });
  const all = el("input", { type: "checkbox", checked: Boolean(options.all), onchange: () => change("all", all.checked) });
  const smoothing = el("input", { type: "range", min: "0", max: "0.98", step: "0.02", value: options.smoothing ?? 0, oninput: () => change("smoothing", Number(smoothing.value)) });
  return el("div", { class: "options" }, el("label", {}, log, "log scale"), el("label", {}, "smoothing", smoothing), curves > MOST_CURVES ? el("label", {}, all, `all ${curves} curves`) : null);
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

const MOST_COMPARED = 20;

async function compareView(names, table, options, fetchTrial, change) {
  const present = new Set(table.values.trial);
  const known = names.filter((name) => present.has(name));
  const trials = (await Promise.all(known.slice(0, MOST_COMPARED).map(fetchTrial))).filter((trial) => trial?.curves);
  const metrics = [...new Set(trials.flatMap((trial) => Object.keys(trial.curves)))];
  const many = known.length > MOST_COMPARED ? `; the curves of the first ${MOST_COMPARED} are shown` : "";
  const none = data.constructor.live ? "These trials have no curves in the store." : "The report holds no curves of these trials.";
  return [
    el("h1", {}, "Comparison"),
    el("p", { class: "note" }, known.length ? `${show.count(known.length, "trial")} chosen${many}.` : "Choose trials in the table with their boxes, or with the space bar. Without a choice the drawing shows the trials of the filter."),
    metrics.length ? el("section", {}, el("h2", {}, "Curves"), curveOptions(options, change, metrics.length), curveGrid(metrics, trials, options)) : null,
    known.length && !metrics.length ? el("p", { class: "note" }, none) : null,
    parallelSection(known, table, options, change),
  ];
}

const MOST_LINES = 2000;

function parallelSection(known, table, options, change) {
  const columns = new Columns(table);
  const byName = new Map(table.values.trial.map((name, row) => [name, row]));
  const rows = known.length > 1 ? known.map((name) => byName.get(name)) : columns.rows(new Filter(options.filter, columns), {});
  const ofKind = (kind) => table.columns.filter((column) => column.kind === kind).map((column) => column.id);
  const common = (id) => rows.filter((row) => table.values[id][row] !== null).length > rows.length / 2;
  const varied = ofKind("param").filter((id) => common(id) && new Set(rows.map((row) => table.values[id][row])).size > 1).slice(0, 9);
  if (!varied.length) return el("p", { class: "note" }, "No parameter differs between these trials.");
  const metrics = ofKind("metric");
  const metric = metrics.includes(options.parallel) ? options.parallel : (metrics.find((id) => id === `metric:${options.score}`) ?? metrics[0]);
  const choice = el("select", { onchange: () => change("parallel", choice.value) }, metrics.map((id) => el("option", { value: id, selected: id === metric }, shortened(titleOf(id)))));
  const ids = [...varied, metric].filter(Boolean);
  const there = (id, row) => table.values[id][row] !== null && Number.isFinite(numberOf(table.values[id][row]) ?? 0);
  const drawn = rows.filter((row) => ids.every((id) => there(id, row))).slice(0, MOST_LINES);
  const place = el("div", { class: "plot tall parallel" });
  const titles = drawn.map((row) => `${table.values.trial[row]}: ${ids.map((id) => `${titleOf(id)}=${show.number(table.values[id][row])}`).join(", ")}`);
  if (drawn.length) later(() => drawParallel(place, drawn.map((row) => ids.map((id) => table.values[id][row])), ids.map(titleOf), titles));
  const note = `${show.count(drawn.length, "trial")} of ${rows.length.toLocaleString("en")}. Drag along an axis to choose a range; a click removes it.`;
  return el("section", {}, el("h2", {}, "Parameters"), el("div", { class: "options" }, metrics.length ? el("label", {}, "metric", choice) : null, el("span", { class: "note" }, note)), drawn.length ? place : el("p", { class: "note" }, "No trial has all of these values."));
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
  return [el("p", { class: "note" }, `${show.count(found.objects, "object")}, ${show.bytes(found.bytes)} in all, listed ${show.moment(found.time)}. "Not listed" is data of checkpoints that no record names: uploads that run, or remains that asyncsync prune removes.`), simpleTable("Every object", ["below", "", "all", "checkpoints", "other files", "not listed"], rows)];
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
  return [el("h1", {}, "Transfers"), el("p", { class: "note" }, data.constructor.live ? "One sample a second since the page is served, of the last quarter of an hour at most." : "The state when the report was written."), el("div", { class: "curves" }, figures), ...engines.map(engineCard)];
}
