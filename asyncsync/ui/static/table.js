"use strict";
// A table of any number of rows: only the rows in view are elements. Sorted and filtered over columns.

const ROW_HEIGHT = 30;

/** The title of a column, without its kind. */
function titleOf(id) {
  return id.replace(/^(metric|param):/, "");
}

function shownCell(kind, value) {
  if (kind === "bytes") return value ? show.bytes(value) : "-";
  if (kind === "time") return show.ago(value);
  return typeof value === "number" ? show.number(value) : (value ?? "-").toString();
}

/** A number for sorting; texts that stand for NaN and infinity are those. Undefined: it is no number. */
function numberOf(value) {
  if (typeof value === "number") return value;
  return { NaN: NaN, Infinity: Infinity, "-Infinity": -Infinity }[value];
}

/** A filter: words that a row contains, and conditions such as loss<0.3 or status=failed. */
class Filter {
  constructor(text, table) {
    this.tests = [];
    for (const word of text.trim().split(/\s+/).filter(Boolean)) {
      const found = /^(.+?)(<=|>=|!=|=|<|>)(.+)$/.exec(word);
      const column = found && table.find(found[1]);
      this.tests.push(column ? Filter.condition(table.values[column], found[2], found[3]) : Filter.word(word.toLowerCase(), table));
    }
  }
  static word(word, table) {
    const columns = table.columns.filter((column) => !["bytes", "time", "metric"].includes(column.kind));
    return (row) => columns.some((column) => String(table.values[column.id][row] ?? "").toLowerCase().includes(word));
  }
  static condition(values, test, text) {
    const wanted = Number(text);
    const compare = { "<": (a, b) => a < b, ">": (a, b) => a > b, "<=": (a, b) => a <= b, ">=": (a, b) => a >= b }[test];
    if (compare) return (row) => compare(numberOf(values[row]) ?? NaN, wanted);
    const equal = (row) => String(values[row]).toLowerCase() === text.toLowerCase() || (text !== "" && numberOf(values[row]) === wanted);
    return test === "=" ? equal : (row) => !equal(row);
  }
  holds(row) {
    return this.tests.every((test) => test(row));
  }
}

/** The columns of the server's document. */
class Columns {
  constructor({ columns, values }) {
    Object.assign(this, { columns, values, size: values.trial.length });
  }
  kind(id) {
    return this.columns.find((column) => column.id === id)?.kind;
  }
  /** The column that a name in a filter means. */
  find(name) {
    return this.columns.find(({ id }) => [name, `param:${name.replace(/^params?[.:]/, "")}`, `metric:${name}`].includes(id))?.id;
  }
  /** The rows for which the filter holds, in order. Rows without a value come last. */
  rows(filter, { by, down }) {
    const rows = [];
    for (let row = 0; row < this.size; row++) if (filter.holds(row)) rows.push(row);
    return by ? Columns.sorted(rows, this.values[by] ?? [], down) : rows;
  }
  static sorted(rows, values, down) {
    const last = (row) => values[row] === null || values[row] === undefined || Number.isNaN(numberOf(values[row]));
    const present = rows.filter((row) => !last(row));
    const numeric = present.every((row) => numberOf(values[row]) !== undefined);
    const order = new Intl.Collator("en", { numeric: true });
    const compare = numeric ? (a, b) => numberOf(values[a]) - numberOf(values[b]) : (a, b) => order.compare(String(values[a]), String(values[b]));
    present.sort(down ? (a, b) => compare(b, a) : compare);
    return [...present, ...rows.filter(last)];
  }
}

/** The table on the page. `state` keeps sorting, selection and scroll place when the data is read again. */
class TrialTable {
  constructor(state, { onopen, onselect }) {
    Object.assign(this, { state, onopen, onselect, shown: [] });
    this.head = el("tr", { role: "row", "aria-rowindex": "1" });
    this.body = el("tbody");
    this.widths = el("colgroup");
    this.table = el("table", { class: "trials", role: "grid", "aria-label": "Trials" }, this.widths, el("thead", {}, this.head), this.body);
    this.box = el("div", { class: "scroll" }, this.table);
    this.box.addEventListener("scroll", () => requestAnimationFrame(() => this.render()), { passive: true });
    this.table.addEventListener("keydown", (event) => this.onkey(event));
    new ResizeObserver(() => this.render()).observe(this.box);
  }
  /** Show other data, or the same with another order. */
  update(columns) {
    this.columns = columns;
    this.shown = columns.rows(new Filter(this.state.filter, columns), this.state.sort);
    this.visible = columns.columns.filter(({ id, kind }) => kind !== "error" || this.state.filter.includes("error") || id === "error");
    this.table.setAttribute("aria-rowcount", this.shown.length + 1);
    this.drawHead();
    this.from = null;
    this.render();
    this.onupdate?.();
  }
  drawHead() {
    const sort = this.state.sort;
    const cells = this.visible.map(({ id, kind }) => {
      const order = sort.by === id ? (sort.down ? "descending" : "ascending") : "none";
      const mark = { descending: " \u25bc", ascending: " \u25b2", none: "" }[order];
      const button = el("button", { type: "button", title: `Sort by ${titleOf(id)}`, "data-column": id, onclick: () => this.sortBy(id) }, titleOf(id) + mark);
      return el("th", { scope: "col", "aria-sort": order, class: kind }, button);
    });
    const focused = this.head.contains(document.activeElement) ? document.activeElement.dataset.column : null;
    this.head.replaceChildren(el("th", { scope: "col", class: "pick" }, el("span", { class: "hidden" }, "Compare")), ...cells);
    if (focused) [...this.head.querySelectorAll("button")].find((button) => button.dataset.column === focused)?.focus();
    this.widths.replaceChildren(el("col", { class: "pick" }), ...this.visible.map((column) => this.widthOf(column)));
  }
  widthOf({ id, kind }) {
    const values = this.columns.values[id];
    let longest = titleOf(id).length + 3;
    for (let row = 0; row < Math.min(values.length, 300); row++) longest = Math.max(longest, shownCell(kind, values[row]).length);
    const col = el("col");
    col.style.width = `${Math.min(longest, kind === "error" ? 60 : 28) + 3}ch`;
    return col;
  }
  sortBy(id) {
    const { sort } = this.state;
    const kind = this.columns.kind(id);
    const first = kind === "bytes" || kind === "time" || (kind === "metric" && this.state.order[id] !== "min");
    this.state.sort = { by: id, down: sort.by === id ? !sort.down : first };
    this.update(this.columns);
  }
  render() {
    if (!this.columns || !this.box.clientHeight) return;
    const head = this.head.offsetHeight;
    const from = Math.max(0, Math.floor(this.box.scrollTop / ROW_HEIGHT) - 5);
    const to = Math.min(this.shown.length, from + Math.ceil((this.box.clientHeight - head) / ROW_HEIGHT) + 12);
    if (from === this.from && to === this.to) return;
    [this.from, this.to] = [from, to];
    const active = this.body.contains(document.activeElement) ? document.activeElement.closest("tr")?.dataset.row : null;
    const rows = this.shown.slice(from, to).map((row, place) => this.row(row, from + place));
    this.body.replaceChildren(this.spacer(from), ...rows, this.spacer(this.shown.length - to));
    if (active) this.body.querySelector(`tr[data-row="${active}"]`)?.focus({ preventScroll: true });
  }
  spacer(rows) {
    const space = el("tr", { "aria-hidden": "true", class: "spacer" });
    space.style.height = `${rows * ROW_HEIGHT}px`;
    return space;
  }
  row(row, place) {
    const name = this.columns.values.trial[row];
    const box = el("input", { type: "checkbox", "aria-label": `Compare ${name}`, tabindex: "-1", onchange: () => this.onselect(name, box.checked) });
    box.checked = this.state.selected.has(name);
    const cells = this.visible.map(({ id, kind }) => {
      const value = this.columns.values[id][row];
      const text = shownCell(kind, value);
      if (kind === "name") return el("td", { class: kind, title: text }, el("a", { href: `#trial=${encodeURIComponent(name)}`, tabindex: "-1" }, text));
      return el("td", { class: `${kind} ${id === "status" ? `status ${statusClass(text)}` : ""}`, title: text.length > 20 ? text : null }, text);
    });
    return el("tr", { role: "row", tabindex: place === this.focusPlace() ? "0" : "-1", "data-row": row, "data-place": place, "aria-rowindex": place + 2 }, el("td", { class: "pick" }, box), ...cells);
  }
  focusPlace() {
    return Math.min(Math.max(this.state.place, this.from ?? 0), this.shown.length - 1);
  }
  onkey(event) {
    const row = event.target.closest("tbody tr");
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 15, PageUp: -15, Home: -Infinity, End: Infinity }[event.key];
    if (!row || (!step && ![" ", "Enter"].includes(event.key)) || event.target.tagName === "INPUT") return;
    event.preventDefault();
    const place = Number(row.dataset.place);
    const name = this.columns.values.trial[this.shown[place]];
    if (event.key === "Enter") this.onopen(name);
    else if (event.key === " ") row.querySelector("input").click();
    else this.focusRow(Math.min(Math.max(place + step, 0), this.shown.length - 1));
  }
  focusRow(place) {
    this.state.place = place;
    const [top, bottom] = [place * ROW_HEIGHT, (place + 1) * ROW_HEIGHT + this.head.offsetHeight];
    if (top < this.box.scrollTop) this.box.scrollTop = top;
    else if (bottom > this.box.scrollTop + this.box.clientHeight) this.box.scrollTop = bottom - this.box.clientHeight;
    this.from = null;
    this.render();
    this.body.querySelector(`tr[data-place="${place}"]`)?.focus({ preventScroll: true });
  }
}

function statusClass(status) {
  if (["failed", "lost", "unreadable"].includes(status)) return "bad";
  if (["finished", "running"].includes(status)) return status;
  return "other";
}
