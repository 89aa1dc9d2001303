"use strict";
// The page: where it is, what it knows, and when it draws again.

const embedded = document.getElementById("data");
const data = embedded ? new ReportData(embedded.textContent) : new ServerData();
const TABS = { overview: "Overview", trials: "Trials", compare: "Compare", storage: "Storage", transfers: "Transfers" };
const state = { filter: "", sort: { by: null, down: false }, selected: new Set(), place: 0, order: {}, options: {}, document: null, trials: new Map(), samples: [], allow: false };

const actions = {
  verified: new Map(),
  buttons(trial, item) {
    if (!state.allow) return [];
    const run = (label, action, fields, question) => {
      const button = el("button", { type: "button" }, label);
      button.addEventListener("click", () => (!question || window.confirm(question)) && actions.run(button, action, { trial: trial.name, checkpoint: item.name, ...fields }, item));
      return button;
    };
    return [run("Verify", "verify", {}), item.pinned ? run("Unpin", "unpin", {}) : run("Pin", "pin", {}), item.pinned ? null : run("Retire", "retire", {}, `Remove ${item.uri} for ever?`)];
  },
  async run(button, action, fields, item) {
    button.disabled = true;
    try {
      const found = await data.post(action, fields);
      if (action === "verify") actions.verified.set(item.uri, { ...found, time: clock.now() });
      say(found.text);
    } catch (error) {
      say(error.message, true);
    }
    button.disabled = false;
    state.trials.delete(fields.trial);
    await route();
  },
};

const parts = {
  title: el("a", { href: "#overview", class: "brand" }, "asyncsync"),
  verdict: el("p", { class: "verdict unknown", role: "status", "aria-live": "polite" }, "Reading the records"),
  read: el("span", { class: "note" }),
  tabs: el("nav", { "aria-label": "Parts" }),
  main: el("main", { id: "main", tabindex: "-1" }),
  message: el("p", { class: "message", role: "alert", hidden: true }),
};
const table = new TrialTable(state, {
  onopen: (name) => (location.hash = `trial=${encodeURIComponent(name)}`),
  onselect: (name, chosen) => {
    if (chosen) state.selected.add(name);
    else state.selected.delete(name);
    drawTabs();
  },
});

function say(text, bad = false) {
  parts.message.textContent = visible(text);
  parts.message.classList.toggle("bad", bad);
  parts.message.hidden = !text;
}

function place() {
  const text = location.hash.slice(1) || "overview";
  const mark = text.indexOf("=");
  if (mark < 0) return [text in TABS ? text : "overview", null];
  try {
    return ["trial", decodeURIComponent(text.slice(mark + 1))];
  } catch {
    return ["trials", null];
  }
}

function drawTabs() {
  const [now] = place();
  const tabs = Object.entries(TABS).map(([name, title]) => {
    const text = name === "compare" && state.selected.size ? `${title} (${state.selected.size})` : title;
    return el("a", { href: `#${name}`, "aria-current": now === name || (now === "trial" && name === "trials") ? "page" : null }, text);
  });
  parts.tabs.replaceChildren(...tabs);
}

function drawHead() {
  const { live, experiment } = state.document;
  parts.verdict.className = `verdict ${live.level}`;
  if (parts.verdict.textContent !== live.verdict) parts.verdict.textContent = live.verdict;
  document.title = experiment ? `${experiment.name} - asyncsync` : "asyncsync";
  parts.title.textContent = experiment ? experiment.name : "asyncsync";
  const partly = live.records < live.trials ? `${live.records.toLocaleString("en")} of ${live.trials.toLocaleString("en")} records read` : "";
  const age = data.constructor.live ? `as of ${show.ago(live.read_at)}` : `report of ${show.moment(live.now)}`;
  parts.read.textContent = [partly, live.read_at || !data.constructor.live ? age : ""].filter(Boolean).join(", ");
}

/** Draw the part of the page that the address names. */
async function route() {
  if (!state.document) return;
  drawHead();
  drawTabs();
  const [name, trial] = place();
  if (!state.document.experiment) return parts.main.replaceChildren(el("p", { class: "note" }, state.document.live.error ?? "Nothing has been read yet."));
  const made = name === "trial" ? await oneTrial(trial) : await VIEWS[name]();
  if (String(place()) !== String([name, trial])) return;
  if (made) {
    const shown = String(place());
    if (state.shown === shown && name !== "trials") patch(parts.main, made.flat().filter(Boolean));
    else parts.main.replaceChildren(...made.flat().filter(Boolean));
    state.shown = shown;
  }
  if (name === "trials") table.update(new Columns(state.document.table));
}

const VIEWS = {
  overview: () => overview(state.document),
  trials: () => (parts.main.contains(table.box) ? null : trialsView()),
  compare: () => compareView([...state.selected], state.document.table, { ...state.options, filter: state.filter, score: state.document.experiment.score }, fetchTrial, setOption),
  storage: () => storageView(state.document, listing()),
  transfers: () => transfersView(state.document, state.samples),
};

function trialsView() {
  const search = el("input", { type: "search", id: "search", placeholder: "Search, or conditions: loss<0.3 status=failed lr>=0.01", "aria-label": "Search and filter trials", value: state.filter });
  search.addEventListener("input", () => {
    state.filter = search.value;
    state.place = 0;
    table.box.scrollTop = 0;
    table.update(new Columns(state.document.table));
  });
  const found = el("span", { class: "note", role: "status" });
  table.onupdate = () => (found.textContent = `${table.shown.length.toLocaleString("en")} of ${state.document.table.values.trial.length.toLocaleString("en")}`);
  const statuses = statusCounts(state.document.table.values.status).map(([status]) => el("button", { type: "button", onclick: () => ((search.value = `status=${status}`), search.dispatchEvent(new Event("input"))) }, status));
  const clear = el("button", { type: "button", onclick: () => ((search.value = ""), search.dispatchEvent(new Event("input"))) }, "all");
  const hidden = state.document.table.left_out ? el("p", { class: "note" }, `${show.count(state.document.table.left_out, "rare column")} not shown.`) : null;
  return [el("div", { class: "options" }, search, clear, statuses.slice(0, 8), found), hidden, table.box];
}

async function fetchTrial(name) {
  if (!state.trials.has(name)) state.trials.set(name, await data.trial(name));
  return state.trials.get(name);
}

async function oneTrial(name) {
  try {
    const trial = await fetchTrial(name);
    return trial ? trialView(trial, state.options, setOption) : [el("h1", {}, name), el("p", { class: "note" }, "The report has no details of this trial; the page (asyncsync ui) has.")];
  } catch (error) {
    return [el("h1", {}, name), el("p", { class: "note bad" }, error.message)];
  }
}

function setOption(name, value) {
  state.options[name] = value;
  route();
}

function listing() {
  if (!data.constructor.live) return null;
  const list = async () => {
    button.disabled = true;
    try {
      state.listing = { ...(await data.get("objects")), time: clock.now() };
    } catch (error) {
      say(error.message, true);
    }
    button.disabled = false;
    route();
  };
  const button = el("button", { type: "button", onclick: list }, "List every object (a request for each thousand)");
  return el("section", {}, el("h2", {}, "Every object"), button, state.listing ? listingView(state.listing) : null);
}

/** Take a new document, or the same with a new live part, and draw what shows it. */
async function take(document) {
  const fresh = document.table !== state.document?.table;
  state.document = document;
  if (fresh) state.trials.clear();
  if (document.experiment?.score) state.order[`metric:${document.experiment.score}`] = document.experiment.order;
  clock.set(document.live.now);
  const [name] = place();
  drawHead();
  if (name === "trials" && parts.main.contains(table.box)) return fresh ? table.update(new Columns(document.table)) : null;
  if (fresh || ["overview", "transfers"].includes(name)) await route();
}

async function refresh() {
  try {
    await take(await data.experiment());
  } catch (error) {
    state.generation = null; // the next event asks again
    serverLost(error);
  }
}

function serverLost(error) {
  parts.verdict.className = "verdict unknown";
  parts.verdict.textContent = `The page has lost its server (${error.message}): nothing here is up to date`;
}

function listen() {
  const events = new EventSource("events");
  events.onmessage = async (event) => {
    const { generation, live, allow, samples } = JSON.parse(event.data);
    const stale = generation !== state.generation;
    [state.generation, state.allow] = [generation, allow];
    state.samples = [...state.samples, ...samples].slice(-900);
    if (stale) return refresh();
    if (!state.document) return;
    await take({ ...state.document, live });
  };
  events.onopen = () => (state.samples = []); // the first event has all samples
  events.onerror = () => serverLost(new Error("the connection is closed"));
}

function start() {
  document.getElementById("static")?.remove();
  const reload = el("button", { type: "button", onclick: () => data.post("reload", {}).catch((error) => say(error.message, true)) }, "Read again");
  const skip = el("a", { href: "#main", class: "skip", onclick: (event) => (event.preventDefault(), parts.main.focus()) }, "To the content");
  document.body.append(skip, el("header", {}, el("div", { class: "line" }, parts.title, parts.read, data.constructor.live ? reload : null), parts.verdict, parts.tabs), parts.message, parts.main);
  window.addEventListener("hashchange", () => (say(""), state.trials.clear(), route().then(() => place()[0] === "trial" && window.scrollTo(0, 0))));
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", route);
  document.addEventListener("keydown", (event) => {
    if (event.key !== "/" || ["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName)) return;
    event.preventDefault();
    if (place()[0] !== "trials") location.hash = "trials";
    setTimeout(() => document.getElementById("search")?.focus());
  });
  drawTabs();
  if (data.constructor.live) listen();
  else refresh();
}

start();
