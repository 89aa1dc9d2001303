"use strict";
// Drawings by plotly, which is loaded with the first of them.

const COLORS = ["#3b7dd8", "#d9822b", "#2f9e62", "#c23b5a", "#8a5cc7", "#a0752b", "#d45fa8", "#6b7c93", "#9aa52a", "#28a4b5"];
let plotlyLoaded = null;

function plotly() {
  plotlyLoaded ??= data.plotly().then(
    (source) =>
      new Promise((resolve, reject) => {
        const script = el("script", { src: source });
        script.onload = () => resolve(window.Plotly);
        script.onerror = () => reject(new Error("the drawing library cannot be loaded"));
        document.head.append(script);
      }),
  );
  return plotlyLoaded;
}

/** A text for plotly, which takes some markup: nothing of ours is markup. */
function plain(text) {
  return visible(String(text)).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
}

function shortened(text, most = 40) {
  return text.length <= most ? text : `${text.slice(0, most - 3)}...`;
}

function themed(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function layout(more = {}) {
  const axis = { gridcolor: themed("--line"), zerolinecolor: themed("--line"), linecolor: themed("--line"), automargin: true };
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: themed("--text"), family: "system-ui, sans-serif", size: 12 },
    margin: { l: 48, r: 12, t: 12, b: 40 },
    hovermode: "closest",
    uirevision: "same",
    showlegend: false,
    ...more,
    xaxis: { ...axis, ...more.xaxis },
    yaxis: { ...axis, ...more.yaxis },
  };
}

const LEGEND = { legend: { orientation: "h", y: 1.02, yanchor: "bottom" }, margin: { l: 48, r: 12, t: 34, b: 40 } };
const SETTINGS = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] };

async function draw(made, traces, more = {}) {
  const place = made.standIn ?? made;
  if (!place.isConnected) return;
  try {
    const library = await plotly();
    if (place.isConnected) await library.react(place, traces, layout(more), SETTINGS);
  } catch (error) {
    place.replaceChildren(el("p", { class: "note" }, `This drawing is not possible here: ${error.message}`));
  }
}

/** The exponential mean of the values, without the bias of the first ones. */
function smoothed(values, weight) {
  let [sum, norm] = [0, 0];
  return values.map((value) => {
    sum = sum * weight + value * (1 - weight);
    norm = norm * weight + (1 - weight);
    return sum / norm;
  });
}

/** Curves over each other. `series`: [{name, x, y}]; `options`: {log, smoothing, step}. */
function drawCurves(place, series, options = {}) {
  const traces = [];
  series.forEach((curve, number) => {
    const color = COLORS[number % COLORS.length];
    const line = { type: "scatter", mode: curve.x.length < 3 ? "lines+markers" : "lines", name: plain(shortened(curve.name)) };
    if (options.smoothing) {
      traces.push({ ...line, x: curve.x, y: curve.y, opacity: 0.25, line: { color, width: 1 }, hoverinfo: "skip", showlegend: false });
    }
    const y = options.smoothing ? smoothed(curve.y, options.smoothing) : curve.y;
    traces.push({ ...line, x: curve.x, y, line: { color, width: 1.8 }, hovertemplate: "%{fullData.name}<br>%{x}: %{y}<extra></extra>" });
  });
  return draw(place, traces, {
    showlegend: series.length > 1,
    ...LEGEND,
    xaxis: { title: { text: plain(options.step ?? "training iteration") } },
    yaxis: { type: options.log ? "log" : "linear" },
  });
}

/** Bars from one moment to another: [{name, from, to}], Unix seconds. */
function drawDurations(place, bars) {
  const lag = bars.map((bar) => bar.to - bar.from);
  const trace = {
    type: "bar",
    x: bars.map((bar) => plain(bar.name)),
    y: lag,
    customdata: bars.map((bar) => show.moment(bar.from)),
    hovertemplate: "%{x}, reported %{customdata}<br>%{y:.1f} s<extra></extra>",
    marker: { color: COLORS[0] },
  };
  return draw(place, [trace], { bargap: 0.4, xaxis: { type: "category" }, yaxis: { title: { text: "seconds until durable" }, rangemode: "tozero" } });
}

/** Samples over time: [{name, x (Unix seconds), y, fill}]. */
function drawTimeline(place, series, title) {
  const traces = series.map((one, number) => ({
    type: "scatter",
    mode: "lines",
    name: plain(one.name),
    x: one.x.map((moment) => new Date(moment * 1000)),
    y: one.y,
    line: { color: COLORS[number], width: 1.5, shape: "hv" },
    fill: number ? "none" : "tozeroy",
  }));
  return draw(place, traces, {
    showlegend: series.length > 1,
    ...LEGEND,
    yaxis: { title: { text: title }, rangemode: "tozero" },
  });
}
