"use strict";
// Elements, texts and the data of the page. Records are hostile: they become text nodes, never markup.

/** An element: attributes, then children (elements or texts). `on...` attributes are listeners. */
function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  const present = children.flat().filter((child) => child !== null && child !== undefined && child !== "");
  made.append(...present.map((child) => (typeof child === "string" ? visible(child) : child)));
  return made;
}

/** The text with its invisible characters shown: one that turns the direction of writing makes a name look like another. */
function visible(text) {
  return text.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g, (found) => `\\u${found.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

const show = {
  bytes(count) {
    if (count === null || count === undefined) return "-";
    const units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = 0;
    while (count >= 1024 && unit < units.length - 1) [count, unit] = [count / 1024, unit + 1];
    return `${unit ? count.toFixed(1) : Math.round(count)} ${units[unit]}`;
  },
  seconds(seconds) {
    for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
      if (seconds >= 2 * size) return `${Math.round(seconds / size)} ${unit}`;
    }
    return seconds < 10 ? `${Math.max(0, seconds).toFixed(1)} s` : `${Math.round(seconds)} s`;
  },
  ago(moment) {
    return moment ? `${show.seconds(Math.max(0, clock.now() - moment))} ago` : "-";
  },
  moment(moment) {
    return moment ? new Date(moment * 1000).toLocaleString() : "-";
  },
  number(value) {
    if (typeof value !== "number") return value === null || value === undefined ? "-" : String(value);
    if (Number.isInteger(value)) return Math.abs(value) < 1e15 ? value.toLocaleString("en") : String(value);
    const size = Math.abs(value);
    return size >= 1e6 || size < 1e-4 ? value.toExponential(3) : String(Number(value.toPrecision(5)));
  },
  count(number, noun) {
    return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
  },
};

/** The clock of the machine that read the store. In a report it stands still. */
const clock = {
  offset: 0,
  still: null,
  now() {
    return clock.still ?? Date.now() / 1000 + clock.offset;
  },
  set(now) {
    clock.offset = now - Date.now() / 1000;
  },
};

/** The data of a report: everything is in the file. */
class ReportData {
  constructor(text) {
    this.content = JSON.parse(text);
    clock.still = this.content.live.now;
    this.details = new Map(this.content.details.map((trial) => [trial.name, trial]));
  }
  static live = false;
  async experiment() {
    return this.content;
  }
  async trial(name) {
    return this.details.get(name) ?? null;
  }
  async plotly() {
    const packed = Uint8Array.from(atob(document.getElementById("plotly").textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return URL.createObjectURL(new Blob([await new Response(stream).text()], { type: "text/javascript" }));
  }
}

/** The data of the page: the server reads the store. */
class ServerData {
  static live = true;
  async get(path) {
    const response = await fetch(path);
    if (!response.ok) throw new Error((await response.text()) || `${response.status}`);
    return response.json();
  }
  experiment() {
    return this.get("experiment");
  }
  trial(name) {
    return this.get(`trial?name=${encodeURIComponent(name)}`);
  }
  async post(action, fields) {
    const response = await fetch(`${action}?${new URLSearchParams(fields)}`, { method: "POST" });
    if (!response.ok) throw new Error((await response.text()) || `${response.status}`);
    return response.json();
  }
  async plotly() {
    return "plotly.min.js";
  }
}

/** The text as one word for a shell. */
function quoted(text) {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

function copyButton(label, text) {
  const button = el("button", { type: "button", title: text }, label);
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      const shown = el("code", { tabindex: "0" }, text); // without permission: to copy by hand
      button.replaceWith(shown);
      shown.focus();
    }
    setTimeout(() => (button.textContent = label), 1500);
  });
  return button;
}

/** Make the children of `parent` equal to `wanted`, and keep what is equal already: focus, selection, drawings. */
function patch(parent, wanted) {
  const present = [...parent.childNodes];
  wanted.forEach((node, place) => patchNode(parent, present[place], typeof node === "string" ? document.createTextNode(node) : node));
  present.slice(wanted.length).forEach((node) => node.remove());
}

function patchNode(parent, old, node) {
  if (!old) return parent.append(node);
  if (old.isEqualNode(node) && node.nodeType === Node.TEXT_NODE) return;
  const samePlot = old.classList?.contains("plot") === node.classList?.contains("plot");
  if (!samePlot || old.nodeName !== node.nodeName || old.nodeType !== Node.ELEMENT_NODE || OWN_STATE.has(node.nodeName)) {
    if (!old.isEqualNode(node) && !isHeld(old, node)) old.replaceWith(node);
    return;
  }
  const isPlot = node.classList.contains("plot");
  if (isPlot) node.standIn = old; // its content and attributes are plotly's
  else patchElement(old, node);
}

function patchElement(old, node) {
  for (const { name } of [...old.attributes]) if (!node.hasAttribute(name) && !KEPT.has(name)) old.removeAttribute(name);
  for (const { name, value } of [...node.attributes]) if (!KEPT.has(name) && old.getAttribute(name) !== value) old.setAttribute(name, value);
  if (old.style.cssText !== node.style.cssText) old.style.cssText = node.style.cssText;
  patch(old, [...node.childNodes]);
}

/** Whether the user is dragging or typing in it: it has its new value already. */
function isHeld(old, node) {
  return old === document.activeElement && old.nodeName === "INPUT" && node.nodeName === "INPUT" && old.type === node.type;
}

const OWN_STATE = new Set(["BUTTON", "INPUT", "SELECT"]);
const KEPT = new Set(["style", "open"]);

/** Call it when the elements that are being made are in the page. */
function later(draw) {
  setTimeout(draw);
}
