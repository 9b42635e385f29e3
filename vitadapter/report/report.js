"use strict";
// The sections of the page, from REPORT in data.js.

const MOST_ROWS = 200; // of a table, before one asks for all
const MOST_CELLS = 24; // classes of a confusion matrix: those that are confused most
const MOST_LINES = 40; // faint lines of classes in a chart
const MOST_CURVES = 8; // with names in a chart
const PART_NAMES = { bbox: "Boxes", segm: "Masks", sem_seg: "Label maps", panoptic: "Segments" };
const ERROR_TEXTS = {
  cls: "in the right place, but of the wrong class", loc: "of the right class, but badly placed",
  both: "of the wrong class and badly placed", dupe: "of an object that is found already",
  bkg: "where nothing is", miss: "objects that nothing is near to",
};
const FEW = 10; // objects, by which no class is judged if others have more
const MAIN_FIGURES = ["AP", "IoU", "PQ"];
const COUNTS = ["objects", "detections", "segments", "matched", "false", "missed", "pixels"]; // columns

const main = document.getElementById("main");
let part = REPORT.judgedBy ?? Object.keys(REPORT.parts)[0]; // whose figures are those of the images
let chosenClass = null;
let gallery = null;

const styleOf = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function section(id, title, ...children) {
  const node = make("section", { id }, make("h2", {}, title), ...children);
  document.getElementById("sections").append(make("a", { href: `#${id}` }, title));
  return node;
}

function link(text, action) {
  return make("button", { class: "link", type: "button", click: action }, text);
}

/** A link to kinds of errors, if the images show those of this part: of boxes and masks, they show one. */
function linkIfJudged(text, wanted, otherwise = []) {
  return part === REPORT.judgedBy ? [link(text, () => gallery.filter(wanted))] : otherwise;
}

/** What is worst, in words, with links to the images. */
function findings() {
  const data = REPORT.parts[part], items = [];
  if (data.errors) {
    const worst = [...data.errors.rows].sort((a, b) => b[2] - a[2])[0];
    if (worst[2] > 0) {
      items.push([
        `The most AP50 is lost to ${worst[0] === "miss" ? "missed objects" : `detections that are ${ERROR_TEXTS[worst[0]]}`}: `
        + `${shown(worst[2])} points, with an AP50 of ${data.errors.ap.toFixed(1)}. `,
        // An object counts as missed here if there is nothing near to it at any score.
        ...linkIfJudged("Show them", { kind: worst[0], ...(worst[0] === "miss" ? { threshold: 0 } : {}) }),
      ]);
    }
  }
  const { columns, rows } = data.table, main = columns.findIndex((c) => MAIN_FIGURES.includes(c));
  const used = rows.map((row, number) => [number, row]).filter(([, row]) => row[1] > 0 && row[main] !== null);
  if (used.length > 1) {
    const frequent = used.filter(([, row]) => row[1] >= FEW);
    const [[number, row]] = (frequent.length ? frequent : used).sort(([, a], [, b]) => a[main] - b[main] || b[1] - a[1]);
    items.push([
      `The weakest class is ${row[0]}: ${columns[main]} ${shown(row[main])}, with ${counted(row[1], columns[1])}. `,
      link("Show it", () => gallery.filter({ class: number, ...(REPORT.kind === "objects" ? { kind: "mistakes" } : {}) })),
    ]);
  }
  const missed = REPORT.kind === "objects" && mostMissed(data);
  if (missed) {
    const [number, count, objects] = missed, { threshold, unit } = data.confusion;
    const from = threshold === undefined ? "" : ` with a score from ${threshold.toFixed(2)}`;
    items.push([
      `The class that is missed most is ${className(number)}: ${count} of ${counted(objects, unit)} have no prediction${from}. `,
      link("Show it", () => showPair(number, -1)),
    ]);
  }
  const confused = confusions(data.confusion.cells)[0];
  if (confused) {
    const [truth, predicted, count] = confused;
    items.push([
      `The classes that are confused most: ${className(truth)} is taken for ${className(predicted)} (${amount(truth, count)}). `,
      link("Show it", () => showPair(truth, predicted)),
    ]);
  }
  return make("ul", { class: "findings" }, ...items.map((texts) => make("li", {}, ...texts)));
}

/** The class with the largest share of objects without a detection at the best score, and how many. */
function mostMissed({ confusion, table }) {
  const missed = confusion.cells.filter(([a, b]) => a >= 0 && b < 0).map(([a, , n]) => [a, n, table.rows[a][1]]);
  return missed.filter(([, , objects]) => objects >= FEW).sort((a, b) => b[1] / b[2] - a[1] / a[2] || b[2] - a[2])[0];
}

/** Cells of different classes, most frequent first, without the background. */
function confusions(cells) {
  return cells.filter(([a, b]) => a !== b && a >= 0 && b >= 0).sort((a, b) => b[2] - a[2]);
}

/** How much of a true class is taken for another one: pixels are too many to be counted. */
function amount(truth, count) {
  const { cells, unit } = REPORT.parts[part].confusion;
  if (unit !== "pixels") return counted(count, unit);
  const total = cells.reduce((sum, [a, , n]) => sum + (a === truth ? n : 0), 0);
  return `${((100 * count) / total).toFixed(1)} % of its pixels`;
}

function showPair(truth, predicted) {
  if (REPORT.kind === "labels") return gallery.filter({ pair: [truth, predicted] });
  const { threshold } = REPORT.parts[part].confusion;
  return gallery.filter({ pair: [truth, predicted], ...(threshold === undefined ? {} : { threshold }) });
}

function overview() {
  const cards = REPORT.parts[part].means.map(([name, value]) => make("div", { class: "figure" }, name, make("b", {}, value === null ? "–" : value.toFixed(1))));
  return section(
    "overview", "Overview", make("div", { class: "cards" }, ...cards), findings(),
    make("dl", {}, ...REPORT.summary.flatMap(([name, text]) => [make("dt", {}, name), make("dd", {}, text)])),
    REPORT.config ? make("details", {}, make("summary", {}, "Config"), make("pre", {}, REPORT.config)) : null,
  );
}

function training() {
  if (!REPORT.curves) return null;
  const { losses, rate, metrics } = REPORT.curves, colors = REPORT.lineColors;
  const last = Math.max(...[...Object.values(losses), ...Object.values(metrics)].flatMap(({ x }) => x.at(-1) ?? 0));
  const axis = { xLabel: "iteration", xRange: [0, last] };
  const series = Object.entries(losses).slice(0, MOST_CURVES).flatMap(([name, { x, y }], i) => {
    const color = i === 0 ? styleOf("--text") : colors[(i - 1) % colors.length];
    return [{ name: name.replace(/^loss_/, ""), x, y: smoothed(y), color }, { name, x, y, color, faint: true }];
  });
  const own = Object.entries(metrics).filter(([name, { y }]) => name.startsWith(part) && y.some((v) => v !== null));
  const evaluated = own.slice(0, MOST_CURVES).map(([name, { x, y }], i) => (
    { name: name.split("/")[1], x, y, color: colors[i % colors.length], dots: true }
  ));
  const charts = [lineChart({ title: "Losses", series, ...axis })];
  if (evaluated.length) {
    charts.push(lineChart({ title: "Metrics of the evaluations (%)", series: evaluated, ...axis }));
    if (evaluated[0].x.length === 1) charts[1].append(make("p", { class: "muted" }, "One evaluation only: train.eval_period=... evaluates during training."));
  }
  if (rate.x.length) charts.push(lineChart({ title: "Learning rate", series: [{ name: "lr", ...rate, color: colors[0] }], ...axis }));
  return section("training", "Training", make("div", { class: "charts" }, ...charts));
}

/** The table of classes, which sorts, and whose rows choose the class of the charts. */
function classTable() {
  const { columns, rows } = REPORT.parts[part].table;
  const order = { column: 0, up: true, limit: MOST_ROWS, text: "", sorted: false };
  const body = make("tbody"), more = make("p");
  const mainColumn = columns.findIndex((c) => MAIN_FIGURES.includes(c));
  const heads = columns.map((name, column) => make("th", { scope: "col" }, make("button", { type: "button", click: () => {
    order.up = order.column === column && order.sorted ? !order.up : column === 0;
    order.column = column; order.sorted = true;
    fill();
  } }, name)));
  const fill = () => {
    let listed = rows.map((row, number) => ({ row, number }));
    if (order.text) listed = listed.filter(({ row }) => row[0].toLowerCase().includes(order.text));
    if (order.sorted) {
      listed.sort((a, b) => {
        const [x, y] = [a.row[order.column], b.row[order.column]];
        if (x === null || y === null) return (x === null) - (y === null); // at the end, either way
        const way = typeof x === "string" ? x.localeCompare(y, undefined, { numeric: true }) : x - y;
        return order.up ? way : -way;
      });
    }
    heads.forEach((head, column) => {
      if (order.sorted && column === order.column) head.setAttribute("aria-sort", order.up ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    });
    body.replaceChildren(...listed.slice(0, order.limit).map(({ row, number }) => {
      const cells = row.map((value, column) => make("td", {
        title: column === 0 ? value : null,
        style: column === mainColumn && value !== null
          ? `background:linear-gradient(90deg, rgba(var(--shade), .22) ${value}%, transparent ${value}%)` : null,
      }, column === 0 ? value : COUNTS.includes(columns[column]) || value === null ? shown(value) : value.toFixed(1)));
      const tr = make("tr", { class: `pick${number === chosenClass ? " chosen" : ""}`, tabindex: 0, click: () => choose(number) }, ...cells);
      tr.addEventListener("keydown", (event) => event.key === "Enter" && choose(number));
      return tr;
    }));
    more.replaceChildren();
    if (listed.length > order.limit) {
      more.append(`${order.limit} of ${shown(listed.length)} classes. `, link("Show all", () => { order.limit = Infinity; fill(); }));
    }
  };
  const choose = (number) => {
    chosenClass = chosenClass === number ? null : number;
    fill();
    drawCharts();
  };
  const search = make("input", { type: "search", placeholder: "find a class", "aria-label": "find a class", input: () => {
    order.text = search.value.toLowerCase();
    fill();
  } });
  fill();
  const hint = REPORT.parts[part].precision
    ? "A click on a head sorts. A click on a row shows the class in the curves below. Detections, precision, recall and F1 are those at the best score of all classes."
    : "A click on a head sorts.";
  return section(
    "classes", "Classes", make("p", { class: "muted" }, hint), rows.length > 20 ? make("p", {}, search) : null,
    make("div", { class: "scroll" }, make("table", { id: "class-table" }, make("thead", {}, make("tr", {}, ...heads)), body)), more,
  );
}

let chartBox = null;
function drawCharts() {
  const { precision, scores } = REPORT.parts[part];
  if (!precision || !chartBox) return;
  const [all, one] = [REPORT.lineColors[0], styleOf("--wrong")], grey = styleOf("--muted");
  const faint = (curves, x) => Object.entries(curves).slice(0, MOST_LINES).map(([k, y]) => ({ name: className(+k), x, y, color: grey, faint: true }));
  const pr = [...faint(precision.classes, precision.recall), { name: "mean of the classes", x: precision.recall, y: precision.mean, color: all }];
  const thresholds = scores.thresholds, pooled = scores.pooled;
  const f1 = [
    { name: "F1", x: thresholds, y: pooled.F1, color: all },
    { name: "precision", x: thresholds, y: pooled.precision, color: REPORT.lineColors[1] },
    { name: "recall", x: thresholds, y: pooled.recall, color: REPORT.lineColors[3] },
  ];
  const at = thresholds.indexOf(scores.best);
  let text = `The best score threshold for all classes is ${scores.best.toFixed(2)}: F1 ${shown(pooled.F1[at], 3)}, precision ${shown(pooled.precision[at], 3)}, recall ${shown(pooled.recall[at], 3)}.`;
  if (chosenClass !== null) {
    const name = className(chosenClass), ofClass = scores.classes[chosenClass];
    if (precision.classes[chosenClass]) pr.push({ name, x: precision.recall, y: precision.classes[chosenClass], color: one });
    if (ofClass) {
      f1.push({ name: `F1 of ${name}`, x: thresholds, y: ofClass.F1, color: one });
      text += ` For ${name} alone it is ${ofClass.best.toFixed(2)}.`;
    } else text += ` ${name} has no objects.`;
  }
  chartBox.replaceChildren(
    lineChart({ title: "Precision against recall, at an IoU of 0.5", series: pr, xLabel: "recall", yRange: [0, 1], xRange: [0, 1] }),
    lineChart({ title: "F1 against the score threshold", series: f1, xLabel: "score from", yRange: [0, 1], xRange: [0, 1], mark: { x: scores.best, text: `best: ${scores.best.toFixed(2)}` } }),
  );
  document.getElementById("best").textContent = text;
}
function curvesOfScores() {
  if (!REPORT.parts[part].precision) return null;
  chartBox = make("div", { class: "charts" });
  return section("curves", "Precision, recall, F1", make("p", { id: "best" }), chartBox);
}

function confusionSection() {
  const { cells, unit, threshold } = REPORT.parts[part].confusion;
  const confused = confusions(cells);
  const weight = new Map();
  for (const [a, b, n] of cells) for (const k of [a, b]) if (k >= 0) weight.set(k, (weight.get(k) ?? 0) + (a === b ? n * 1e-9 : n));
  const used = [...weight.keys()].sort((a, b) => weight.get(b) - weight.get(a)).slice(0, MOST_CELLS).sort((a, b) => a - b);
  const hasBackground = cells.some(([a, b]) => a < 0 || b < 0);
  const lines = hasBackground ? [...used, -1] : used;
  const values = new Map(cells.map(([a, b, n]) => [`${a},${b}`, n]));
  const totals = new Map();
  for (const [a, , n] of cells) totals.set(a, (totals.get(a) ?? 0) + n);
  const body = lines.map((a) => make("tr", {}, make("th", { scope: "row", title: className(a) }, className(a)), ...lines.map((b) => {
    const n = values.get(`${a},${b}`) ?? 0, share = n / (totals.get(a) || 1);
    const color = a === b ? "--shade" : "--wrong-shade";
    const text = n === 0 ? "" : unit === "pixels" ? (100 * share).toFixed(share < 0.1 ? 1 : 0) : String(n);
    const cell = make("td", {
      title: `${className(a)} taken for ${className(b)}: ${shown(n)} ${unit} (${(100 * share).toFixed(1)} % of ${className(a)})`,
      style: n ? `background:rgba(var(${color}), ${(0.08 + 0.72 * share).toFixed(2)})` : null,
      tabindex: n ? 0 : null, click: n ? () => showPair(a, b) : () => {},
    }, text);
    cell.addEventListener("keydown", (event) => event.key === "Enter" && n && showPair(a, b));
    return cell;
  })));
  const head = make("tr", {}, make("th", {}, "true ↓ predicted →"), ...lines.map((k) => make("th", { scope: "col", title: className(k) }, className(k))));
  const list = confused.slice(0, 15).map(([a, b, n]) => make("li", {}, link(`${className(a)} taken for ${className(b)}`, () => showPair(a, b)), ` (${amount(a, n)})`));
  const words = [
    unit === "pixels" ? "Percent of the pixels of each true class." : `Numbers of ${unit}; the shade is the share of the true class.`,
    threshold === undefined ? "" : `At the best score, ${threshold.toFixed(2)}, and an IoU of at least 0.5.`,
    weight.size > lines.length ? `Of ${shown(weight.size)} classes, the ${MOST_CELLS} with the most confusions.` : "",
    "A click on a cell shows the images.",
  ];
  return section(
    "confusion", "Confusion matrix", make("p", { class: "muted" }, words.filter(Boolean).join(" ")),
    make("div", { class: "split" },
      make("div", { class: "scroll" }, make("table", { class: "matrix", id: "matrix" }, make("thead", {}, head), make("tbody", {}, ...body))),
      make("div", {}, make("h3", {}, "Confused most"), list.length ? make("ul", { class: "list" }, ...list) : make("p", { class: "muted" }, "No two classes are confused."))),
  );
}

function errorSection() {
  const { errors } = REPORT.parts[part];
  if (!errors) return null;
  const most = Math.max(...errors.rows.map((row) => row[2]), 1e-9);
  const bars = errors.rows.map(([kind, count, cost]) => make(
    "div", { class: "bar" },
    make("span", {}, ...linkIfJudged(KIND_NAMES[kind], { kind, threshold: 0 }, [KIND_NAMES[kind]]), make("br"), make("small", { class: "muted" }, ERROR_TEXTS[kind])),
    make("span", {}, make("span", { class: "fill", style: `width:${(75 * cost) / most}%` }), `${shown(cost, 1)} AP50, ${shown(count)} times`),
  ));
  const words = [
    `By how much the AP50 of ${errors.ap.toFixed(1)} would rise if all errors of a kind were mended (TIDE). All detections count, whatever their score.`,
    `The images have those with a score from ${REPORT.leastScore.toFixed(2)}.`,
    part !== REPORT.judgedBy && `The images below show the kinds of errors of ${PART_NAMES[REPORT.judgedBy].toLowerCase()}.`,
  ];
  return section(
    "errors", "What each kind of error costs", make("p", { class: "muted" }, words.filter(Boolean).join(" ")),
    make("div", { id: "error-bars" }, ...bars),
  );
}

function gallerySection() {
  const root = section("gallery", "Images");
  if (!REPORT.images.length) {
    root.append(make("p", { class: "muted" }, "There are no images."));
    gallery = { filter() {} };
    return root;
  }
  const judged = PART_NAMES[REPORT.judgedBy];
  const words = [
    judged && `${judged} are judged at an IoU of 0.5.`,
    REPORT.parts[part].scores && "The score slider begins at the best F1.",
    "A click on an image compares it with the truth.",
  ];
  root.append(make("p", { class: "muted" }, words.filter(Boolean).join(" ")));
  main.append(root); // so that the gallery can measure its cards
  gallery = new Gallery(root, document.getElementById("viewer"));
  return root;
}

function render() {
  document.getElementById("sections").replaceChildren();
  main.replaceChildren();
  main.append(...REPORT.notes.map((note) => make("p", { class: "note" }, note)));
  main.append(...[overview(), training(), classTable(), curvesOfScores(), confusionSection(), errorSection()].filter(Boolean));
  gallerySection();
  drawCharts();
  const parts = Object.keys(REPORT.parts);
  document.getElementById("parts").replaceChildren(...(parts.length < 2 ? [] : parts.map((name) => make("button", {
    class: "plain", type: "button", "aria-pressed": String(name === part), click: () => { part = name; render(); },
  }, PART_NAMES[name]))));
}

document.title = `${REPORT.title} – report`;
document.getElementById("title").textContent = REPORT.title;
render();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", render);
