"use strict";
// Parallel coordinates as SVG. (plotly's own need WebGL programs that are evaluated, which the page's policy forbids.)

const VIRIDIS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
const AXIS = { top: 46, bottom: 18, side: 70, label: 17 };

/** An element of SVG. */
function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children.map((child) => (typeof child === "string" ? visible(child) : child)));
  return made;
}

/** The place of a value on one axis, from 0 (below) to 1. Texts are places of equal distance; wide ranges are logarithmic. */
class ParallelAxis {
  constructor(name, values) {
    this.name = name;
    this.numeric = values.every((value) => typeof value === "number");
    this.texts = this.numeric ? [] : [...new Set(values.map(String))].sort(new Intl.Collator("en", { numeric: true }).compare);
    this.low = Math.min(...(this.numeric ? values : [0]));
    this.high = Math.max(...(this.numeric ? values : [this.texts.length - 1]));
    this.log = this.numeric && this.low > 0 && this.high / this.low > 50;
  }
  at(value) {
    const number = this.numeric ? value : this.texts.indexOf(String(value));
    const bend = this.log ? Math.log : (plainNumber) => plainNumber;
    return this.high === this.low ? 0.5 : (bend(number) - bend(this.low)) / (bend(this.high) - bend(this.low));
  }
  ticks() {
    if (!this.numeric) return this.texts.slice(0, 15).map((text) => ({ at: this.at(text), text: shortened(text, 12) }));
    const parts = this.high === this.low ? [0.5] : [0, 0.25, 0.5, 0.75, 1];
    const value = (part) => (this.log ? this.low * (this.high / this.low) ** part : this.low + (this.high - this.low) * part);
    return parts.map((part) => ({ at: part, text: show.number(Number(value(part).toPrecision(3))) }));
  }
}

function viridis(part) {
  const place = Math.min(0.9999, Math.max(0, part)) * (VIRIDIS.length - 1);
  const [from, to] = [VIRIDIS[Math.floor(place)], VIRIDIS[Math.floor(place) + 1]];
  return `rgb(${from.map((channel, number) => Math.round(channel + (to[number] - channel) * (place % 1))).join(",")})`;
}

/** Draw `rows` (arrays of values, one for each of `columns`) in the color of the last column. Ranges stay when it is drawn again. */
function drawParallel(made, rows, columns, titles) {
  const place = made.standIn ?? made;
  const size = { width: Math.max(place.clientWidth, columns.length * 90), height: place.clientHeight - 4 };
  const axes = columns.map((name, number) => new ParallelAxis(name, rows.map((row) => row[number])));
  const x = (number) => AXIS.side + ((size.width - 2 * AXIS.side) * number) / Math.max(1, axes.length - 1);
  const y = (part) => AXIS.top + (size.height - AXIS.top - AXIS.bottom) * (1 - part);
  const lines = rows.map((row, number) => {
    const points = axes.map((axis, column) => `${x(column).toFixed(1)},${y(axis.at(row[column])).toFixed(1)}`).join(" ");
    const line = svg("polyline", { points, stroke: viridis(axes.at(-1).at(row.at(-1))) }, svg("title", {}, titles[number]));
    line.parts = axes.map((axis, column) => axis.at(row[column]));
    return line;
  });
  place.ranges = new Map([...(place.ranges ?? [])].filter(([name]) => columns.includes(name)));
  const choose = () => lines.forEach((line) => line.classList.toggle("off", !axes.every(({ name }, column) => inRange(place.ranges.get(name), line.parts[column]))));
  const picture = svg("svg", { width: size.width, height: size.height, class: "parallel", role: "img" }, svg("title", {}, `Parallel coordinates of ${columns.join(", ")}`), svg("g", {}, ...lines), ...axes.map((axis, column) => drawAxis(axis, x(column), y, place.ranges, choose)));
  place.replaceChildren(picture);
  choose();
}

function inRange(range, part) {
  return !range || (part >= range[0] && part <= range[1]);
}

/** An axis with its ticks, and a range that is dragged along it. A click without a drag removes the range. */
function drawAxis(axis, x, y, ranges, choose) {
  const ticks = axis.ticks().map(({ at, text }) => svg("text", { x: x - 5, y: y(at) + 4, "text-anchor": "end" }, text));
  const brush = svg("rect", { class: "brush", x: x - 7, width: 14 });
  const grip = svg("rect", { class: "grip", x: x - 12, width: 24, y: y(1) - 6, height: y(0) - y(1) + 12 });
  const move = () => {
    const [low, high] = ranges.get(axis.name) ?? [0, 0];
    brush.setAttribute("y", y(high));
    brush.setAttribute("height", y(low) - y(high));
    choose();
  };
  let from = null;
  const partOf = (event) => (y(0) - (event.clientY - grip.ownerSVGElement.getBoundingClientRect().top)) / (y(0) - y(1));
  grip.addEventListener("pointerdown", (event) => {
    from = partOf(event);
    grip.setPointerCapture(event.pointerId);
    event.preventDefault();
  });
  grip.addEventListener("pointermove", (event) => {
    if (from === null) return;
    const to = partOf(event);
    if (Math.abs(to - from) > 0.01) ranges.set(axis.name, [Math.min(from, to), Math.max(from, to)]);
    else ranges.delete(axis.name);
    move();
  });
  grip.addEventListener("pointerup", (event) => {
    if (Math.abs(partOf(event) - from) <= 0.01) ranges.delete(axis.name);
    from = null;
    move();
  });
  later(move);
  const title = svg("text", { class: "name", x, y: AXIS.label, "text-anchor": "middle" }, shortened(axis.name, 16), svg("title", {}, axis.name));
  return svg("g", { class: "axis" }, svg("line", { x1: x, x2: x, y1: y(0), y2: y(1) }), ...ticks, title, brush, grip);
}
