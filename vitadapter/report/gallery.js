"use strict";
// The gallery: filters, cards that are made as one scrolls, and the viewer of one image.

const CARDS_AT_ONCE = 60;

/** A picture with room for what is drawn over it. */
function stackOf(image, lazy, grey = false) {
  const [w, h] = image.size;
  const stack = make("div", { class: "stack", style: `aspect-ratio:${w}/${h}` });
  if (image.file) {
    stack.append(make("img", {
      src: image.file, alt: image.name, loading: lazy ? "lazy" : "eager", decoding: "async",
      class: `${Math.max(w, h) < 160 ? "small" : ""}${grey ? " grey" : ""}`,
    }));
  } else stack.append(make("div", { class: "lost" }, "image not found"));
  return stack;
}

/** The gallery of a report; `page.filter({...})` sets filters from elsewhere on the page. */
class Gallery {
  constructor(root, viewer) {
    this.root = root; this.viewer = viewer;
    this.isObjects = REPORT.kind === "objects";
    this.state = {
      class: "", kind: "", size: "", pair: null, sort: "mistakes", threshold: REPORT.threshold ?? 0,
      boxes: REPORT.judgedBy !== "panoptic", outlines: true, labels: true, truth: true, predictions: true,
      layer: "errors", opacity: 0.75,
    };
    this.names = new Map(REPORT.classes.map((name, number) => [name, number]));
    this.grid = make("div", { class: "grid-cards", id: "cards" });
    this.count = make("span", { class: "muted", id: "count", "aria-live": "polite" });
    this.end = make("div", { style: "height:1px" });
    this.controls = {};
    root.append(this.filters(), this.key(), this.grid, this.end);
    this.shows = new IntersectionObserver((seen) => {
      for (const entry of seen) if (entry.isIntersecting) {
        this.shows.unobserve(entry.target);
        this.decorate(entry.target);
      }
    }, { rootMargin: "300px" });
    new IntersectionObserver((seen) => seen[0].isIntersecting && this.more(), { rootMargin: "600px" }).observe(this.end);
    // These replace those of an earlier gallery: the viewer stays when the page is drawn anew.
    viewer.onkeydown = (event) => {
      if (event.key === "ArrowRight") this.step(1);
      if (event.key === "ArrowLeft") this.step(-1);
    };
    viewer.onclick = (event) => event.target === viewer && viewer.close();
    this.update();
  }

  control(name, node, read, write) {
    node.id = `filter-${name}`;
    this.controls[name] = { node, write };
    node.addEventListener("input", () => {
      const value = read();
      if (value === undefined) return;
      this.state[name] = value;
      if (["class", "kind", "size"].includes(name)) this.state.pair = null;
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.update(), node.type === "range" ? 60 : 0);
    });
    return node;
  }
  select(name, options) {
    const node = make("select", {}, ...options.map(([value, text]) => make("option", { value }, text)));
    node.value = this.state[name];
    return this.control(name, node, () => node.value, (value) => { node.value = value; });
  }
  check(name, text) {
    const node = make("input", { type: "checkbox" });
    node.checked = this.state[name];
    this.control(name, node, () => node.checked, (value) => { node.checked = value; });
    return make("label", {}, node, ` ${text}`);
  }
  range(name, text) {
    const node = make("input", { type: "range", min: 0, max: 1, step: 0.01, "aria-label": text });
    const value = make("output", {}, this.state[name].toFixed(2));
    node.value = this.state[name];
    this.control(name, node, () => {
      value.textContent = (+node.value).toFixed(2);
      return +node.value;
    }, (next) => { node.value = next; value.textContent = next.toFixed(2); });
    return make("label", {}, `${text} `, node, " ", value);
  }

  filters() {
    const known = make("datalist", { id: "class-names" });
    REPORT.classes.slice(0, 2000).forEach((name) => known.append(make("option", { value: name })));
    const chosen = make("input", { type: "search", list: "class-names", placeholder: "all classes", "aria-label": "class" });
    this.control("class", chosen, () => {
      const number = chosen.value === "" ? "" : this.names.get(chosen.value);
      chosen.setCustomValidity(number === undefined ? "no class has this name (yet)" : ""); // marks it
      return number;
    }, (value) => {
      chosen.value = value === "" ? "" : className(value);
      chosen.setCustomValidity("");
    });
    const bar = make("div", { class: "filters" }, make("label", {}, "class ", chosen), known);
    if (this.isObjects) {
      const kinds = [...REPORT.kinds.filter((kind) => !NOT_COUNTED.includes(kind)), "miss"];
      const options = [["", "everything"], ["mistakes", "any mistake"], ...kinds.map((kind) => [kind, KIND_NAMES[kind]])];
      const sizes = [["", "any size"], ...SIZES.map((text, i) => [String(i), text])];
      bar.append(make("label", {}, "kind ", this.select("kind", options)), make("label", {}, "size ", this.select("size", sizes)));
      if (REPORT.judgedBy !== "panoptic") bar.append(this.range("threshold", "score from"));
    } else {
      const layers = [["errors", "errors"], ["predicted", "prediction"], ["truth", "truth"], ["none", "image alone"]];
      bar.append(make("label", {}, "show ", this.select("layer", layers)), this.range("opacity", "opacity"));
    }
    const orders = [["mistakes", "most mistakes first"], ["file", "as in the data set"]];
    if (this.isObjects && REPORT.judgedBy !== "panoptic") orders.splice(1, 0, ["score", "surest mistakes first"]);
    bar.append(make("label", {}, "order ", this.select("sort", orders)));
    if (this.isObjects) {
      bar.append(this.check("predictions", "predictions"), this.check("truth", "truth"), this.check("boxes", "boxes"));
      if (REPORT.images.some((image) => image.masks)) bar.append(this.check("outlines", "masks"));
      bar.append(this.check("labels", "labels"));
    }
    this.pairText = make("span");
    const reset = make("button", { class: "plain", id: "reset", click: () => this.filter({}) }, "Reset");
    bar.append(reset, this.pairText, this.count);
    return bar;
  }

  key() {
    const keys = this.isObjects
      ? [["--right", "right prediction"], ["--wrong", "wrong prediction"], ["--missed", "missed object (dashed)"], ["#bbb", "object that has a prediction (white, dotted), in the truth alone"]]
      : [["--wrong", "wrong pixel"]];
    if (!this.isObjects && REPORT.images.some(({ pixels, size: [w, h] }) => pixels < w * h)) keys.push(["#999", "pixel that does not count"]);
    return make("div", { class: "key" }, ...keys.map(([color, text]) => make(
      "span", {}, make("i", { style: `background:${color.startsWith("--") ? `var(${color})` : color}` }), text,
    )));
  }

  /** Sets these filters, and all others to what shows everything. */
  filter(wanted) {
    const all = { class: "", kind: "", size: "", pair: null, threshold: REPORT.threshold ?? 0, ...wanted };
    for (const [name, value] of Object.entries(all)) {
      this.state[name] = value;
      this.controls[name]?.write(value);
    }
    this.update();
    if (Object.keys(wanted).length) this.root.scrollIntoView();
  }

  items(image) {
    const items = itemsOf(image, this.state.threshold);
    if (this.state.pair) markPairs(image, items);
    return items;
  }
  /** Whether an item is what the filters ask for. */
  wanted(item) {
    const { class: chosen, kind, size, pair } = this.state;
    if (pair) return item.pair?.[0] === pair[0] && item.pair?.[1] === pair[1];
    if (chosen !== "" && item.class !== chosen) return false;
    if (size !== "" && item.size !== +size) return false;
    if (kind === "") return true;
    return kind === "mistakes" ? isMistake(item) : item.kind === kind;
  }
  isFiltered() {
    const { class: chosen, kind, size, pair } = this.state;
    return chosen !== "" || kind !== "" || size !== "" || pair !== null;
  }

  objectMatches() {
    const found = [];
    let items = 0;
    REPORT.images.forEach((image, number) => {
      const matching = this.items(image).filter((item) => this.wanted(item));
      items += matching.length;
      if (!matching.length && this.isFiltered()) return;
      const mistakes = matching.filter(isMistake);
      const sure = mistakes.reduce((best, item) => Math.max(best, item.score ?? 0), 0);
      found.push({ number, mistakes: mistakes.length, score: sure });
    });
    this.counted = this.isFiltered() ? `${items === 1 ? "1 match" : `${shown(items)} matches`} in ` : "";
    return found;
  }
  labelMatches() {
    const found = [], { class: chosen, pair } = this.state;
    REPORT.images.forEach((image, number) => {
      let wrong = image.wrong;
      if (pair || chosen !== "") {
        wrong = 0;
        for (let i = 0; i < image.pairs.length; i += 3) {
          const [truth, predicted, pixels] = image.pairs.slice(i, i + 3);
          const hit = pair ? truth === pair[0] && predicted === pair[1] : truth === chosen || predicted === chosen;
          if (hit) wrong += pixels;
        }
        const there = pair ? wrong > 0 : image.classes.includes(chosen) || image.predictedClasses.includes(chosen);
        if (!there) return;
      }
      found.push({ number, mistakes: image.pixels ? wrong / image.pixels : 0, score: 0 });
    });
    this.counted = "";
    return found;
  }

  update() {
    const found = this.isObjects ? this.objectMatches() : this.labelMatches();
    const { sort, pair } = this.state;
    if (sort !== "file") found.sort((a, b) => b[sort] - a[sort] || a.number - b.number);
    this.found = found; this.made = 0;
    this.grid.replaceChildren();
    this.count.textContent = `${this.counted}${shown(found.length)} of ${shown(REPORT.images.length)} images`;
    this.pairText.textContent = pair ? `${className(pair[0])} taken for ${className(pair[1])}` : "";
    this.more();
  }
  more() {
    if (!this.found) return;
    const next = this.found.slice(this.made, this.made + CARDS_AT_ONCE);
    next.forEach((entry, i) => this.grid.append(this.card(entry, this.made + i)));
    this.made += next.length;
  }

  card(entry, place) {
    const image = REPORT.images[entry.number];
    const text = this.isObjects
      ? `${entry.mistakes} ${entry.mistakes === 1 ? "mistake" : "mistakes"}`
      : `${(100 * entry.mistakes).toFixed(1)} % wrong`;
    const card = make(
      "button", { class: "card", type: "button", "data-number": entry.number, click: () => this.open(place) },
      make("div", { class: "picture" }, stackOf(image, true, this.isGrey())),
      make("div", { class: "name" }, make("span", { title: image.name }, image.name), make("span", { class: "muted" }, text)),
    );
    this.shows.observe(card);
    return card;
  }
  /** Whether images are grey, so that colours stand for classes and errors alone. */
  isGrey() {
    return !this.isObjects && this.state.layer !== "none";
  }
  decorate(card) {
    const number = +card.dataset.number, image = REPORT.images[number], stack = card.querySelector(".stack");
    if (!this.isObjects) {
      const { layer, opacity } = this.state;
      if (layer !== "none") stack.append(make("img", { class: "over", src: image[layer], alt: "", style: `opacity:${opacity}` }));
      return;
    }
    const draw = () => {
      const items = this.visible(number);
      const width = stack.clientWidth || 250;
      const lit = this.isFiltered() ? (item) => this.wanted(item) : null;
      stack.append(drawItems(number, items, { ...this.state, lit, width }));
    };
    if (this.state.outlines && image.masks) withMasks(number, draw);
    else draw();
  }
  visible(number) {
    const { truth, predictions } = this.state;
    // On a card, what finds an object, or is wrong about it, stands for it too.
    const isShown = (item) => (item.predicted ? predictions : truth && !(predictions && item.mark === "found"));
    return this.items(REPORT.images[number]).filter(isShown);
  }

  open(place) {
    this.place = place;
    const { number } = this.found[place], image = REPORT.images[number];
    const close = make("button", { class: "plain", click: () => this.viewer.close() }, "Close");
    const go = (step, text) => make("button", { class: "plain", click: () => this.step(step), "aria-label": step < 0 ? "previous image" : "next image" }, text);
    const head = make("div", { class: "viewer-head" }, make("h3", {}, image.name), go(-1, "←"), go(1, "→"), close);
    const panels = make("div", { class: "panels" });
    const list = make("ul", { class: "items" });
    this.viewer.replaceChildren(head, panels, list);
    if (!this.viewer.open) this.viewer.showModal();
    if (this.isObjects) this.openObjects(number, panels, list);
    else this.openLabels(image, panels, list);
  }
  step(by) {
    const next = this.place + by;
    if (next < 0 || next >= this.found.length) return;
    this.open(next);
  }
  panel(panels, caption, image, grey = false) {
    const stack = stackOf(image, false, grey);
    // No taller than the window.
    stack.style.maxWidth = `calc(${image.size[0] / image.size[1]} * 62vh)`;
    panels.append(make("figure", {}, make("figcaption", {}, caption), make("div", { class: "picture" }, stack)));
    return stack;
  }
  openObjects(number, panels, list) {
    const image = REPORT.images[number];
    const items = itemsOf(image, this.state.threshold);
    const stacks = [this.panel(panels, "truth", image), this.panel(panels, "prediction", image)];
    const draw = () => stacks.forEach((stack, i) => {
      stack.querySelector("svg")?.remove();
      const side = items.filter((item) => item.predicted === (i === 1));
      stack.append(drawItems(number, side, { ...this.state, lit: null, width: stack.clientWidth || 600 }));
    });
    if (this.state.outlines && image.masks) withMasks(number, draw);
    else draw();
    const ordered = [...items].sort((a, b) => isMistake(b) - isMistake(a) || (b.score ?? 0) - (a.score ?? 0));
    const colors = { right: "--right", wrong: "--wrong", missed: "--missed", found: "--truth", crowd: "--line" };
    for (const item of ordered.filter((each) => each.mark !== "found")) {
      list.append(make(
        "li", {
          pointerenter: () => item.node?.querySelectorAll("*").forEach((n) => n.classList.add("lit")),
          pointerleave: () => item.node?.querySelectorAll("*").forEach((n) => n.classList.remove("lit")),
        },
        make("span", { class: "swatch", style: `background:var(${colors[item.mark]})` }),
        `${tag(item)}: ${KIND_NAMES[item.kind]}${item.kind === "cls" && item.truth !== undefined ? `, it is ${className(item.truth)}` : ""} (${SIZES[item.size]})`,
      ));
    }
  }
  openLabels(image, panels, list) {
    const layers = [["image", null], ["truth", "truth"], ["prediction", "predicted"], ["errors", "errors"]];
    for (const [caption, layer] of layers) {
      const stack = this.panel(panels, caption, image, layer !== null);
      if (layer) stack.append(make("img", { class: "over", src: image[layer], alt: "", style: `opacity:${this.state.opacity}` }));
    }
    const used = [...new Set([...image.classes, ...image.predictedClasses])];
    list.before(make("div", { class: "key" }, ...used.map((k) => make("span", {}, swatch(k), className(k)))));
    for (let i = 0; i < image.pairs.length; i += 3) {
      const [truth, predicted, pixels] = image.pairs.slice(i, i + 3);
      const share = ((100 * pixels) / image.pixels).toFixed(1);
      list.append(make("li", {}, `${className(truth)} taken for ${className(predicted)}: ${share} % of the pixels`));
    }
  }
}

function swatch(number) {
  const color = REPORT.colors?.[number];
  return make("span", { class: "swatch", style: color ? `background:rgb(${color.join(",")})` : "" });
}
