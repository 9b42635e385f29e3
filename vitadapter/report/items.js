"use strict";
// Detections and objects of an image: which there are at a score, and how they are drawn over it.

const DETECTION_FIELDS = 9; // class, score, x, y, width, height, kind, size, number of the object it is wrong about
const OBJECT_FIELDS = 7; // class, x, y, width, height, state, size
const CROWD_STATE = -3;
const KIND_NAMES = {
  right: "right", cls: "wrong class", loc: "badly placed", both: "wrong class and badly placed",
  dupe: "duplicate", bkg: "false: nothing there", miss: "missed object", crowd: "in a crowd, not counted",
  ignored: "in a region without labels, not counted",
};
const SIZES = ["small", "medium", "large"];
const NOT_COUNTED = ["crowd", "ignored"];

const masks = new Map(); // outlines of the images that were looked at: [detections, objects]
const waiting = new Map();
/** The scripts in masks/ call this. */
function showMasks(number, outlines) {
  masks.set(number, outlines);
  (waiting.get(number) ?? []).forEach((done) => done());
  waiting.delete(number);
}
function withMasks(number, done) {
  if (masks.has(number)) return done();
  if (waiting.has(number)) return waiting.get(number).push(done);
  waiting.set(number, [done]);
  return document.head.append(make("script", { src: REPORT.images[number].masks }));
}

const className = (number) => (number < 0 ? "background" : REPORT.classes[number]);

/**
 * Detections and objects of an image, as they are at a threshold of the score. An object that a wrong
 * detection is about is "spoilt": it is no mistake more. The first such detection has its class as `truth`.
 */
function itemsOf(image, threshold) {
  const items = [], found = new Set(), spoilers = new Map(), { detections, objects } = image;
  for (let i = 0, place = 0; i < detections.length; i += DETECTION_FIELDS, place += 1) {
    if (detections[i + 1] < threshold) continue;
    const kind = REPORT.kinds[detections[i + 6]];
    items.push({
      predicted: true, place, class: detections[i], score: detections[i + 1],
      box: detections.slice(i + 2, i + 6), kind, size: detections[i + 7],
      mark: kind === "right" ? "right" : NOT_COUNTED.includes(kind) ? "crowd" : "wrong",
    });
    const about = detections[i + 8];
    if (kind === "right") found.add(place);
    else if (about >= 0 && !spoilers.has(about)) spoilers.set(about, items.at(-1));
  }
  for (let i = 0, place = 0; i < objects.length; i += OBJECT_FIELDS, place += 1) {
    const state = objects[i + 5];
    const spoiler = spoilers.get(place);
    const kind = state === CROWD_STATE ? "crowd" : found.has(state) ? "found" : spoiler ? "spoilt" : "miss";
    if (kind === "spoilt") spoiler.truth = objects[i];
    items.push({
      predicted: false, place, class: objects[i], box: objects.slice(i + 1, i + 5), kind,
      size: objects[i + 6], mark: kind === "miss" ? "missed" : kind === "crowd" ? "crowd" : "found",
    });
  }
  return items;
}

/** Has the items of a pair of the confusion matrix point to it: the detection if there is one, or the object. */
function markPairs(image, items) {
  const detections = new Map(), objects = new Map();
  for (const item of items) (item.predicted ? detections : objects).set(item.place, item);
  const pairs = image.pairs[part];
  for (let i = 0; i < pairs.length; i += 2) {
    const [object, detection] = [objects.get(pairs[i]), detections.get(pairs[i + 1])];
    // A detection of many may not be on the page.
    const item = pairs[i + 1] >= 0 ? detection : object;
    if (item) item.pair = [object?.class ?? -1, detection?.class ?? -1];
    // At the score and the IoU of the matrix, whatever else is near it.
    if (object && item === object) object.mark = "missed";
  }
}
const isMistake = (item) => item.mark === "wrong" || item.mark === "missed";

/** The items of an image as SVG over it. */
function drawItems(number, items, { boxes, outlines, labels, lit, width }) {
  const { size } = REPORT.images[number];
  const svg = make("svg", { viewBox: `0 0 ${size[0]} ${size[1]}`, "aria-hidden": "true" });
  const unit = size[0] / width; // pixels of the image in one of the screen
  const taken = [];
  for (const item of items) {
    const dim = lit && !lit(item) ? " dim" : "";
    const group = make("g", { class: dim });
    if (outlines && masks.has(number)) {
      const lines = masks.get(number)[item.predicted ? 0 : 1][item.place] ?? [];
      const path = lines.map((line) => `M${line.join(" ")}Z`).join("");
      group.append(make("path", { class: `mask ${item.mark}`, d: path, "fill-rule": "evenodd" }));
    }
    const [x, y, w, h] = item.box;
    if (boxes) group.append(make("rect", { class: `thing ${item.mark}`, x, y, width: w, height: h }));
    svg.append(group);
    item.node = group;
    if (!labels || dim) continue;
    const height = 12 * unit, text = tag(item);
    const place = [Math.max(0, Math.min(x, size[0] - text.length * height * 0.55)), y > height + 3 * unit ? y - 3 * unit : y + height];
    const reach = text.length * height * 0.55;
    const hit = taken.some(([a, b, r]) => Math.abs(b - place[1]) < height && a < place[0] + reach && place[0] < a + r);
    if (hit) continue; // rather none than several on top of each other
    taken.push([...place, reach]);
    svg.append(make("text", { class: "tag", x: place[0], y: place[1], "font-size": height, "stroke-width": 2.5 * unit }, text));
  }
  return svg;
}
function tag(item) {
  const score = item.predicted && REPORT.judgedBy !== "panoptic" ? ` ${item.score.toFixed(2)}` : "";
  return className(item.class) + score;
}
