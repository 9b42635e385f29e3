"use strict";
// Elements, numbers, and charts of lines, as SVG.

/** An element with attributes (functions become listeners) and children (texts or elements). */
function make(tag, attributes = {}, ...children) {
  const isSvg = ["svg", "g", "path", "line", "rect", "text", "circle"].includes(tag);
  const node = isSvg
    ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** A number for people; "–" if there is none. */
function shown(value, digits = 1) {
  if (value === null || value === undefined) return "–";
  return Number.isInteger(value) && digits !== null && Math.abs(value) >= 1000
    ? value.toLocaleString("en") : String(+value.toFixed(digits));
}

/** A number of things, such as "1 object". */
function counted(number, things) {
  return `${shown(number)} ${number === 1 ? things.replace(/s$/, "") : things}`;
}

/** Means over up to 8 % of the points. The window shrinks at both ends, where it would lack points. */
function smoothed(values) {
  const reach = Math.round(values.length * 0.04);
  return values.map((_, i) => {
    const r = Math.min(reach, i, values.length - 1 - i);
    const inside = values.slice(i - r, i + r + 1).filter((v) => v !== null);
    return inside.length ? inside.reduce((a, b) => a + b, 0) / inside.length : null;
  });
}

/** A round step from `low` to `high`, of which there are about `count`. */
function tickStep(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].map((n) => n * power).find((s) => s >= rough);
}

/** The round numbers from `low` to `high`. */
function ticks(low, high, count) {
  const step = tickStep(low, high, count);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i += 1) found.push(i * step);
  return found;
}

/** All digits of a round number, without those of its binary form. */
function tickText(value) {
  const round = +value.toPrecision(9), size = Math.abs(round);
  return size !== 0 && (size < 1e-3 || size >= 1e6) ? round.toExponential() : String(round);
}

const WIDTH = 440, HEIGHT = 260, LEFT = 52, BOTTOM = 40, TOP = 10, RIGHT = 14;

/**
 * A chart of lines: series of {name, x, y, color, faint, dots, plain}, where `faint` lines are drawn
 * behind and not named, and a mark {x, text} is a vertical line.
 */
function lineChart({ title, series, xLabel, yLabel, yRange, xRange, mark, digits = 3 }) {
  const points = series.flatMap((s) => s.y.map((y, i) => [s.x[i], y])).filter(([, y]) => y !== null);
  const box = make("div", { class: "chart" }, make("h3", {}, title));
  if (!points.length) {
    box.append(make("p", { class: "muted" }, "Nothing to draw."));
    return box;
  }
  const reduce = (index, pick) => points.reduce((a, p) => pick(a, p[index]), points[0][index]);
  let [x0, x1] = xRange ?? [reduce(0, Math.min), reduce(0, Math.max)];
  if (x0 === x1) [x0, x1] = [x0 - 1, x1 + 1];
  let [y0, y1] = yRange ?? [Math.min(0, reduce(1, Math.min)), reduce(1, Math.max)];
  if (y0 === y1) y1 = y0 + 1;
  if (!yRange) { // up to the next tick
    const step = tickStep(y0, y1, 5);
    [y0, y1] = [Math.floor(y0 / step + 1e-9) * step, Math.ceil(y1 / step - 1e-9) * step];
  }
  const px = (x) => LEFT + ((x - x0) / (x1 - x0 || 1)) * (WIDTH - LEFT - RIGHT);
  const py = (y) => HEIGHT - BOTTOM - ((y - y0) / (y1 - y0)) * (HEIGHT - BOTTOM - TOP);
  const svg = make("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": title });
  for (const y of ticks(y0, y1, 5)) {
    svg.append(
      make("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: py(y), y2: py(y) }),
      make("text", { class: "tick", x: LEFT - 6, y: py(y) + 4, "text-anchor": "end" }, tickText(y)),
    );
  }
  for (const x of ticks(x0, x1, 5)) {
    svg.append(make("text", { x: px(x), y: HEIGHT - BOTTOM + 16, "text-anchor": "middle" }, tickText(x)));
  }
  svg.append(make("text", { x: (LEFT + WIDTH) / 2, y: HEIGHT - 4, "text-anchor": "middle" }, xLabel));
  if (mark) {
    svg.append(make("line", { class: "hair", x1: px(mark.x), x2: px(mark.x), y1: TOP, y2: HEIGHT - BOTTOM }));
    const left = px(mark.x) > WIDTH / 2;
    svg.append(make("text", { x: px(mark.x) + (left ? -5 : 5), y: TOP + 12, "text-anchor": left ? "end" : "start" }, mark.text));
  }
  for (const s of [...series].sort((a, b) => (b.faint ? 1 : 0) - (a.faint ? 1 : 0))) {
    let path = "", pen = "M";
    s.y.forEach((y, i) => {
      if (y === null) { pen = "M"; return; }
      path += `${pen}${px(s.x[i]).toFixed(1)} ${py(Math.max(y0, Math.min(y1, y))).toFixed(1)}`;
      pen = "L";
    });
    svg.append(make("path", {
      d: path, fill: "none", stroke: s.color, "stroke-width": s.faint ? 1 : 2.4,
      opacity: s.faint ? 0.3 : 1, "stroke-linejoin": "round",
    }));
    if (s.dots || s.y.filter((y) => y !== null).length === 1) {
      s.y.forEach((y, i) => y !== null && svg.append(
        make("circle", { cx: px(s.x[i]), cy: py(y), r: 3.5, fill: s.color }),
      ));
    }
  }
  const named = series.filter((s) => !s.faint);
  const legend = make("div", { class: "legend" });
  const values = named.map((s) => {
    const value = make("span");
    legend.append(make("span", {}, make("i", { style: `background:${s.color}` }), `${s.name} `, value));
    return value;
  });
  const hair = make("line", { class: "hair", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  svg.append(hair);
  svg.addEventListener("pointermove", (event) => {
    const scale = WIDTH / svg.getBoundingClientRect().width;
    const at = x0 + ((event.offsetX * scale - LEFT) / (WIDTH - LEFT - RIGHT)) * (x1 - x0);
    if (at < x0 || at > x1) return;
    hair.setAttribute("x1", px(at)); hair.setAttribute("x2", px(at));
    hair.setAttribute("visibility", "visible");
    named.forEach((s, k) => {
      let best = 0;
      s.x.forEach((x, i) => { if (Math.abs(x - at) < Math.abs(s.x[best] - at)) best = i; });
      values[k].textContent = s.y[best] === null ? "–" : String(+s.y[best].toPrecision(digits));
    });
  });
  svg.addEventListener("pointerleave", () => {
    hair.setAttribute("visibility", "hidden");
    values.forEach((value) => { value.textContent = ""; });
  });
  if (yLabel) box.append(make("div", { class: "muted" }, yLabel));
  box.append(svg, legend);
  return box;
}
