// The piece-parent graph: nodes by zone, and who gets bytes from whom at this moment.
// Few nodes are discs with their names; many are cells of a dense grid, and what flows between
// zones is drawn as one band each.

import { AWAY, FETCHING, ORIGIN, SOURCES, fromWhere } from "./model.js";
import { bytes, percent, plural, rate, zoneName } from "./format.js";
import { FONT, colours, fit, pattern } from "./chart.js";

/** Up to so many nodes have names and lines of their own. */
const FEW = 40;
const LINES_MAX = 220;
const GAP = 14;
const TITLE = 24;
const ORIGIN_BAND = 58;
/** Of many nodes: room for the arcs between zones, and for what is said about each zone. */
const ARCS_BAND = 108;
const ARCS_MAX = 24;
const DENSE_TITLE = 58;
/** A phone shows zones below each other: then what flows between them is only said. */
const ARCS_WIDTH = 110;
/** Beside the colours, so that nobody needs them. */
const DASHES = { origin: [5, 7], seed: [14, 6], peer: [] };

export class Graph {
  constructor(canvas, detail, model) {
    Object.assign(this, { canvas, detail, model, spots: new Map(), panels: [], chosen: null, hovered: null, phase: 0 });
    this.calm = window.matchMedia("(prefers-reduced-motion: reduce)");
    canvas.addEventListener("pointermove", (event) => this.#hover(event));
    canvas.addEventListener("pointerleave", () => { this.hovered = null; this.draw(); });
    canvas.addEventListener("click", () => { this.chosen = this.hovered; this.draw(); });
    canvas.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("blur", () => { this.chosen = null; this.draw(); });
    this.#animate(0);
  }

  get isDense() { return this.model.nodes.size > FEW; }
  get focus() { return this.hovered ?? this.chosen; }

  // ---- places

  /** Give every node its place; to be called when nodes come, go, or the canvas changes its size. */
  place() {
    const width = this.canvas.clientWidth, height = this.canvas.clientHeight;
    const zones = this.model.zones;
    this.spots.clear();
    this.panels = [];
    this.size = [width, height];
    if (!zones.length) return;
    this.originAt = { x: width / 2, y: 22 };
    this.title = this.isDense ? DENSE_TITLE : TITLE;
    this.arcs = this.isDense && zones.length > 1 && width / zones.length >= ARCS_WIDTH;
    const top = this.arcs ? ARCS_BAND : ORIGIN_BAND;
    const area = { x: 0, y: top, width, height: height - top };
    const { columns, rows } = this.arcs ? { columns: zones.length, rows: 1 } : split(zones, area, this.isDense, this.title);
    const panelWidth = (area.width - GAP * (columns - 1)) / columns;
    const panelHeight = (area.height - GAP * (rows - 1)) / rows;
    const most = Math.max(...zones.map((zone) => zone.nodes.length));
    const inner = { width: panelWidth - 20, height: panelHeight - this.title - 12 };
    const cell = this.isDense ? cellSize(most, inner) : null;
    zones.forEach((zone, i) => {
      const inRow = Math.min(columns, zones.length - Math.floor(i / columns) * columns);
      const indent = (area.width - inRow * panelWidth - (inRow - 1) * GAP) / 2;
      const x = area.x + indent + (i % columns) * (panelWidth + GAP);
      const y = area.y + Math.floor(i / columns) * (panelHeight + GAP);
      const panel = { zone, x, y, width: panelWidth, height: panelHeight };
      this.panels.push(panel);
      if (cell) this.#cells(panel, cell);
      else this.#discs(panel);
    });
  }

  #cells(panel, cell) {
    const perRow = Math.max(1, Math.floor((panel.width - 20) / cell));
    const wide = Math.min(perRow, panel.zone.nodes.length) * cell;
    const left = panel.x + (panel.width - wide) / 2;
    const tall = Math.ceil(panel.zone.nodes.length / perRow) * cell;
    const top = panel.y + this.title + Math.max(0, (panel.height - this.title - 8 - tall) / 2);
    panel.zone.nodes.forEach((node, i) => {
      const x = left + (i % perRow) * cell + cell / 2;
      const y = top + Math.floor(i / perRow) * cell + cell / 2;
      this.spots.set(node.id, { x, y, r: cell / 2 - Math.max(1, cell * 0.08) });
    });
  }

  #discs(panel) {
    const nodes = panel.zone.nodes;
    const inner = { x: panel.x + 8, y: panel.y + TITLE, width: panel.width - 16, height: panel.height - TITLE - 6 };
    let best = null;
    for (let columns = 1; columns <= nodes.length; columns += 1) {
      const rows = Math.ceil(nodes.length / columns);
      const room = Math.min(inner.width / columns / 2.4, (inner.height / rows - 22) / 2.1);
      if (!best || room > best.room) best = { columns, rows, room };
    }
    const r = Math.max(7, Math.min(this.model.nodes.size > 8 ? 30 : 38, best.room));
    nodes.forEach((node, i) => {
      const row = Math.floor(i / best.columns);
      const inRow = Math.min(best.columns, nodes.length - row * best.columns);
      const x = inner.x + (inner.width * (i - row * best.columns + 0.5)) / inRow;
      // Neighbours stand at different heights: lines between them do not run through a third one.
      const room = Math.max(0, inner.height / best.rows - 2 * r - 30);
      const shift = inRow > 1 ? (((i - row * best.columns) % 2) - 0.5) * Math.min(r * 3, room * 0.8) : 0;
      const y = inner.y + (inner.height * (row + 0.5)) / best.rows - 8 + shift;
      this.spots.set(node.id, { x, y, r });
    });
  }

  // ---- drawing

  draw() {
    const canvas = this.canvas;
    if (this.size?.[0] !== canvas.clientWidth || this.size?.[1] !== canvas.clientHeight) this.place();
    const { pen, width } = fit(canvas);
    const tones = colours();
    Object.assign(this, { pen, tones });
    this.fills = Object.fromEntries(SOURCES.map((source) => [source, pattern(pen, source, tones[source])]));
    pen.font = FONT;
    pen.lineJoin = pen.lineCap = "round";
    if (!this.panels.length) return this.#sayEmpty(width);
    for (const panel of this.panels) this.#panel(panel);
    if (this.isDense) { this.#bands(); this.#grid(); this.#lines(LINES_MAX); }
    else { this.#lines(LINES_MAX); this.#nodes(); }
    this.#origin();
    this.#describe();
  }

  #sayEmpty(width) {
    this.pen.fillStyle = this.tones.dim;
    this.pen.textAlign = "center";
    this.pen.fillText("No node is known yet.", width / 2, 80);
  }

  #panel({ zone, x, y, width, height }) {
    const { pen, tones } = this;
    pen.fillStyle = tones.soft;
    pen.globalAlpha = 0.55;
    pen.beginPath(); pen.roundRect(x, y, width, height, 10); pen.fill();
    pen.globalAlpha = 1;
    pen.strokeStyle = tones.line;
    pen.lineWidth = 1;
    pen.stroke();
    const away = zone.nodes.filter((node) => node.state === AWAY).length;
    const all = zone.nodes.length;
    const text = away ? `${all - away} of ${plural(all, "node")}` : plural(all, "node");
    pen.textBaseline = "middle";
    pen.textAlign = "left";
    pen.font = `600 ${FONT}`;
    pen.fillStyle = tones.text;
    const name = clip(pen, zoneName(zone.name), width * 0.5);
    pen.fillText(name, x + 10, y + 14);
    const after = x + 10 + pen.measureText(name).width + 8;
    pen.font = FONT;
    pen.fillStyle = tones.dim;
    pen.fillText(clip(pen, text, x + width - after - 6), after, y + 14);
    if (!this.isDense) return;
    const lines = this.#aboutZone(zone);
    const room = width - 20;
    if (rows(lines, pen, room) === 1) pen.fillText(lines.join(" · "), x + 10, y + 32);
    else lines.forEach((line, i) => pen.fillText(clip(pen, line, room), x + 10, y + 31 + 16 * i));
  }

  /** How far a zone is, and what reaches it: from its own nodes, and from elsewhere. */
  #aboutZone(zone) {
    const busy = zone.nodes.filter((node) => node.state === FETCHING);
    const whole = busy.reduce((sum, node) => sum + node.whole, 0);
    const missing = busy.reduce((sum, node) => sum + node.missing, 0);
    const into = this.model.zoneFlows.filter(([child]) => child === zone.name);
    const sum = (flows) => flows.reduce((total, flow) => total + flow[2], 0);
    const inside = sum(into.filter(([child, parent]) => parent === child)), outside = sum(into) - inside;
    const some = busy.length < zone.nodes.length ? `, ${busy.length} fetching` : " there";
    return [
      busy.length ? `${percent((whole - missing) / whole)}${some}` : "nothing to fetch",
      outside > 0 ? `in ${rate(outside)}` : inside > 0 ? `inside ${rate(inside)}` : "quiet",
    ];
  }

  #origin() {
    const { pen, tones, originAt: { x, y } } = this;
    pen.font = `600 ${FONT}`;
    const text = "origin";
    const wide = pen.measureText(text).width + 34;
    pen.fillStyle = tones.card;
    pen.strokeStyle = tones.origin;
    pen.lineWidth = 1.6;
    pen.beginPath(); pen.roundRect(x - wide / 2, y - 13, wide, 26, 13); pen.fill(); pen.stroke();
    pen.fillStyle = tones.text;
    pen.textAlign = "center"; pen.textBaseline = "middle";
    pen.fillText(text, x, y + 0.5);
    pen.font = FONT;
    const into = this.model.totals.rates[3];
    pen.fillStyle = tones.dim;
    pen.textAlign = "left";
    pen.fillText(into > 0 ? rate(into) : "quiet", x + wide / 2 + 8, y + 0.5);
  }

  #kind(parent) {
    if (parent === ORIGIN) return "origin";
    return this.model.nodes.get(parent)?.role === "seed" ? "seed" : "peer";
  }

  /** Lines from parents to children: width by rate; the kind of parent by colour and by dashes. */
  #lines(limit) {
    const { pen, tones, model, focus } = this;
    const strongest = model.edges[0]?.[2] ?? 1;
    const mine = ([child, parent]) => focus !== null && (child === focus || parent === focus);
    const others = this.isDense ? [] : model.edges.filter((edge) => !mine(edge)).slice(0, limit);
    const shown = [...others, ...model.edges.filter(mine)];
    for (const edge of shown) {
      const [child, parent, speed] = edge;
      const to = this.spots.get(child);
      const from = parent === ORIGIN ? { ...this.originAt, r: 16 } : this.spots.get(parent);
      if (!to || !from) continue;
      const kind = this.#kind(parent);
      const strength = Math.sqrt(speed / strongest);
      const wide = this.isDense ? 1.4 + 1.6 * strength : 0.8 + 5 * strength;
      if (this.isDense) {
        // Over the cells, of which many have the same colour.
        pen.globalAlpha = 1;
        pen.strokeStyle = tones.card;
        pen.lineWidth = wide + 2.5;
        const way = curve(from, to);
        pen.beginPath(); pen.moveTo(way.x0, way.y0); pen.quadraticCurveTo(way.cx, way.cy, way.x1, way.y1); pen.stroke();
      }
      // The strong ones are what one should see first.
      pen.globalAlpha = focus === null ? 0.3 + 0.6 * strength : mine(edge) ? 0.95 : 0.1;
      pen.strokeStyle = pen.fillStyle = tones[kind];
      pen.lineWidth = mine(edge) ? Math.max(wide, 1.6) : wide;
      const way = curve(from, to);
      pen.setLineDash(DASHES[kind]);
      // Dashes wander from parent to child.
      pen.lineDashOffset = -this.phase * 24;
      pen.beginPath(); pen.moveTo(way.x0, way.y0); pen.quadraticCurveTo(way.cx, way.cy, way.x1, way.y1); pen.stroke();
      pen.setLineDash([]);
      if (!this.isDense || mine(edge)) head(pen, way, Math.max(6, wide * 2.1));
      if (!DASHES[kind].length && wide > 2) this.#drops(way, wide);
    }
    pen.globalAlpha = 1;
  }

  /** Light drops run along a solid line. */
  #drops(way, wide) {
    const { pen, tones } = this;
    pen.fillStyle = tones.card;
    const long = Math.hypot(way.x1 - way.x0, way.y1 - way.y0);
    const n = Math.max(1, Math.round(long / 45));
    for (let i = 0; i < n; i += 1) {
      const t = ((i + (this.phase % 2) / 2) / n) % 1;
      const [x, y] = along(way, t);
      pen.beginPath(); pen.arc(x, y, Math.max(0.9, wide * 0.28), 0, 7); pen.fill();
    }
  }

  #nodes() {
    const { pen, tones, model } = this;
    for (const node of model.nodes.values()) {
      const { x, y, r } = this.spots.get(node.id);
      const ring = Math.max(3.5, r * 0.2);
      pen.globalAlpha = this.focus !== null && this.focus !== node.id && !this.#isNextTo(node.id) ? 0.45 : 1;
      this.#shape(node, x, y, r + 2);
      pen.fillStyle = tones.card;
      pen.fill();
      pen.strokeStyle = node.state === AWAY ? tones.faint : node.role === "seed" ? tones.seed : tones.line;
      pen.lineWidth = node.role === "seed" ? 2 : 1.2;
      pen.setLineDash(node.state === AWAY ? [3, 3] : []);
      pen.stroke();
      pen.setLineDash([]);
      if (node.state !== AWAY && node.whole > 0) this.#ring(node, x, y, r - ring / 2 - 1.5, ring);
      pen.fillStyle = node.state === AWAY ? tones.dim : tones.text;
      pen.textAlign = "center"; pen.textBaseline = "middle";
      pen.font = `600 ${Math.max(9, Math.min(15, r * 0.46))}px ${FONT.slice(5)}`;
      const word = node.state === AWAY ? "away" : node.state === FETCHING ? percent(node.progress).replace("\u00a0", "") : "✓";
      if (r > 11) pen.fillText(word, x, y + 0.5);
      pen.font = FONT;
      pen.fillStyle = tones.text;
      pen.textBaseline = "top";
      const label = clip(pen, node.role === "seed" ? `${node.name} (seed)` : node.name, Math.max(60, r * 3.4));
      pen.lineWidth = 3; pen.strokeStyle = tones.card; pen.strokeText(label, x, y + r + 6);
      pen.fillText(label, x, y + r + 6);
      if (this.focus === node.id) this.#halo(x, y, r + 5);
    }
    pen.globalAlpha = 1;
  }

  #isNextTo(id) { return this.model.edges.some(([child, parent]) => (child === id && parent === this.focus) || (parent === id && child === this.focus)); }

  #shape(node, x, y, r) {
    const { pen } = this;
    pen.beginPath();
    if (node.role === "seed") pen.roundRect(x - r, y - r, 2 * r, 2 * r, r * 0.35);
    else pen.arc(x, y, r, 0, 7);
  }

  #ring(node, x, y, r, wide) {
    const { pen, tones } = this;
    pen.lineCap = "butt";
    pen.lineWidth = wide;
    pen.strokeStyle = tones.soft;
    pen.beginPath(); pen.arc(x, y, r, 0, 7); pen.stroke();
    let at = -Math.PI / 2;
    node.parts.forEach((part, i) => {
      const turn = (part / node.whole) * 2 * Math.PI;
      if (!part) return;
      pen.strokeStyle = this.fills[SOURCES[i]];
      pen.beginPath(); pen.arc(x, y, r, at, at + turn); pen.stroke();
      at += turn;
    });
    pen.lineCap = "round";
  }

  #halo(x, y, r) {
    const { pen, tones } = this;
    pen.strokeStyle = tones.focus;
    pen.lineWidth = 2;
    pen.beginPath(); pen.roundRect(x - r, y - r, 2 * r, 2 * r, Math.min(r, 8)); pen.stroke();
  }

  // ---- many nodes

  #grid() {
    const { pen, tones, model } = this;
    for (const node of model.nodes.values()) {
      const { x, y, r } = this.spots.get(node.id);
      pen.globalAlpha = 1;
      const corner = Math.min(3, r * 0.35);
      pen.beginPath(); pen.roundRect(x - r, y - r, 2 * r, 2 * r, corner);
      pen.fillStyle = tones.card;
      pen.fill();
      if (node.state !== AWAY && node.whole > 0) {
        pen.save();
        pen.clip();
        let level = y + r;
        node.parts.forEach((part, i) => {
          const tall = (part / node.whole) * 2 * r;
          pen.fillStyle = r > 5 ? this.fills[SOURCES[i]] : tones[SOURCES[i]];
          // Done is a fainter thing than under way.
          pen.globalAlpha = node.state === FETCHING ? 0.95 : 0.45;
          pen.fillRect(x - r, level - tall, 2 * r, tall);
          level -= tall;
        });
        pen.restore();
      }
      pen.globalAlpha = 1;
      pen.beginPath(); pen.roundRect(x - r, y - r, 2 * r, 2 * r, corner);
      pen.strokeStyle = node.role === "seed" ? tones.text : node.state === AWAY ? tones.dim : tones.line;
      pen.lineWidth = node.role === "seed" ? 1.8 : 1;
      pen.stroke();
      if (node.state === AWAY) { pen.beginPath(); pen.moveTo(x - r, y - r); pen.lineTo(x + r, y + r); pen.moveTo(x + r, y - r); pen.lineTo(x - r, y + r); pen.stroke(); }
      if (this.focus === node.id) this.#halo(x, y, r + 3);
    }
  }

  /** Where arcs between zones stand: above the panels, as long as these are in one row. */
  #zoneWays() {
    if (!this.arcs) return [];
    const at = new Map(this.panels.map((panel, i) => [panel.zone.name, { ...panel, i }]));
    const flows = this.model.zoneFlows.filter(([child, parent]) => child !== parent && at.has(child) && (parent === null || at.has(parent)));
    return flows.slice(0, ARCS_MAX).map(([child, parent, speed]) => {
      const to = at.get(child);
      const y1 = to.y - 3;
      const middle = to.x + to.width / 2;
      if (parent === null) {
        const { x, y } = this.originAt;
        const side = Math.sign(middle - x);
        return { speed, kind: "origin", way: { x0: x + side * 24, y0: y + 12, cx: middle, cy: y + 14, x1: middle, y1 } };
      }
      const from = at.get(parent);
      const side = Math.sign(to.i - from.i);
      const far = Math.abs(to.i - from.i);
      // There and back begin and end at different places, and have different heights.
      const x0 = from.x + from.width / 2 + side * from.width * (0.16 + 0.05 * far);
      const x1 = middle - side * to.width * (0.16 + 0.05 * far);
      const cy = y1 - 30 - (ARCS_BAND - 40) * 1.5 * (far / Math.max(1, this.panels.length - 1)) - (side > 0 ? 12 : 0);
      return { speed, kind: "peer", way: { x0, y0: y1, cx: (x0 + x1) / 2, cy, x1, y1 } };
    });
  }

  /** What flows between zones, one arc each. */
  #bands() {
    const { pen, tones } = this;
    const ways = this.#zoneWays();
    const strongest = Math.max(1, ...ways.map(({ speed }) => speed));
    for (const { way, speed, kind } of ways.reverse()) {
      const wide = 1 + 4.5 * Math.sqrt(speed / strongest);
      pen.strokeStyle = pen.fillStyle = kind === "origin" ? tones.origin : tones.peer;
      pen.globalAlpha = this.focus !== null ? 0.12 : kind === "origin" ? 0.9 : 0.42;
      pen.lineWidth = wide;
      pen.setLineDash(kind === "origin" ? DASHES.origin : []);
      pen.beginPath(); pen.moveTo(way.x0, way.y0); pen.quadraticCurveTo(way.cx, way.cy, way.x1, way.y1); pen.stroke();
      pen.setLineDash([]);
      head(pen, way, Math.max(6, wide * 1.8));
    }
    pen.globalAlpha = 1;
  }

  // ---- words

  #describe() {
    const { model, focus } = this;
    const node = focus === null ? null : model.nodes.get(focus);
    const text = node ? this.#about(node) : this.#aboutAll();
    // Read aloud when somebody chose a node, not with every second's numbers.
    this.detail.setAttribute("aria-live", node && focus !== this.described ? "polite" : "off");
    this.described = focus;
    if (this.detail.textContent !== text) this.detail.textContent = text;
  }

  #aboutAll() {
    const { model } = this;
    const [child, parent, speed] = model.edges[0] ?? [];
    if (child === undefined) return "Nothing moves at the moment. Point at a node, or use the arrow keys, to read about it.";
    return `${plural(model.edges.length, "pair")} of parent and child; the strongest is ${model.name(parent)} to ${model.name(child)}, ${rate(speed)}.`;
  }

  #about(node) {
    const { model } = this;
    const named = (edges, i) => edges.slice(0, 4).map((edge) => `${model.name(edge[i])} ${rate(edge[2])}`).join(", ") + (edges.length > 4 ? ` and ${edges.length - 4} more` : "");
    const from = model.edges.filter(([child]) => child === node.id);
    const to = model.edges.filter(([, parent]) => parent === node.id);
    const state = node.state === AWAY ? "away" : node.state === FETCHING ? `${percent(node.progress)} of ${bytes(node.whole)} there` : `idle, ${plural(node.complete, "blob")}`;
    const parts = [`${node.name}${node.role === "seed" ? " (seed)" : ""} in ${zoneName(node.zone)}: ${state}`];
    const sources = fromWhere(node, percent);
    if (sources) parts.push(sources);
    if (from.length) parts.push(`from ${named(from, 1)}`);
    if (to.length) parts.push(`to ${named(to, 0)}`);
    return `${parts.join("; ")}.`;
  }

  // ---- hands

  #hover(event) {
    const box = this.canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - box.left, event.clientY - box.top];
    let found = null;
    for (const [id, spot] of this.spots) if (Math.abs(spot.x - x) <= spot.r + 2 && Math.abs(spot.y - y) <= spot.r + 2) found = id;
    if (found !== this.hovered) { this.hovered = found; this.draw(); }
  }

  #key(event) {
    const ids = this.model.zones.flatMap((zone) => zone.nodes.map((node) => node.id));
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Escape") this.chosen = null;
    else if (event.key === "Home") this.chosen = ids[0] ?? null;
    else if (event.key === "End") this.chosen = ids[ids.length - 1] ?? null;
    else if (step && ids.length) {
      const at = ids.indexOf(this.chosen);
      this.chosen = ids[at < 0 ? 0 : (at + step + ids.length) % ids.length];
    } else return;
    event.preventDefault();
    this.draw();
  }

  /** Dashes move a little, some times a second, while bytes flow and somebody looks. */
  #animate(now) {
    const due = now - (this.last ?? 0) > 66;
    if (due && !this.calm.matches && !this.isDense && this.model.edges.length && !document.hidden) {
      this.phase += Math.min(0.2, (now - (this.last ?? now)) / 1000);
      this.draw();
    }
    if (due) this.last = now;
    requestAnimationFrame((then) => this.#animate(then));
  }
}

// ---- geometry

/** Columns and rows of zones: panels as little stretched as can be. */
function split(zones, area, isDense, title) {
  let best = null;
  for (let columns = 1; columns <= zones.length; columns += 1) {
    const rows = Math.ceil(zones.length / columns);
    const width = (area.width - GAP * (columns - 1)) / columns, height = (area.height - GAP * (rows - 1)) / rows;
    if (columns > 1 && width < 96) break;
    const most = Math.max(...zones.map((zone) => zone.nodes.length));
    const inner = { width: width - 20, height: height - title - 12 };
    const room = isDense ? cellSize(most, inner) : Math.min(discRoom(most, inner), 30);
    const empty = columns * rows - zones.length;
    const score = room - empty * 0.5 - 2 * Math.abs(Math.log(width / height));
    if (!best || score > best.score) best = { columns, rows, score };
  }
  return best;
}
function discRoom(n, { width, height }) {
  let best = 0;
  for (let columns = 1; columns <= n; columns += 1) best = Math.max(best, Math.min(width / columns / 2.4, (height / Math.ceil(n / columns) - 22) / 2.1));
  return best;
}
function cellSize(n, { width, height }) {
  let size = 30;
  while (size > 4 && Math.floor(width / size) * Math.floor(height / size) < n) size -= 0.5;
  return size;
}
function rows(lines, pen, room) { return pen.measureText(lines.join(" · ")).width <= room ? 1 : lines.length; }

/** A bent way between the rims of two spots: there and back are two ways. */
function curve(from, to) {
  const dx = to.x - from.x, dy = to.y - from.y;
  const long = Math.hypot(dx, dy) || 1;
  const bend = Math.min(46, long * 0.16);
  const cx = (from.x + to.x) / 2 - (dy / long) * bend, cy = (from.y + to.y) / 2 + (dx / long) * bend;
  const a = Math.hypot(cx - from.x, cy - from.y) || 1, b = Math.hypot(to.x - cx, to.y - cy) || 1;
  return {
    x0: from.x + ((cx - from.x) / a) * (from.r + 2), y0: from.y + ((cy - from.y) / a) * (from.r + 2), cx, cy,
    x1: to.x - ((to.x - cx) / b) * (to.r + 5), y1: to.y - ((to.y - cy) / b) * (to.r + 5),
  };
}
function along({ x0, y0, cx, cy, x1, y1 }, t) {
  const s = 1 - t;
  return [s * s * x0 + 2 * s * t * cx + t * t * x1, s * s * y0 + 2 * s * t * cy + t * t * y1];
}
function head(pen, way, size) {
  const angle = Math.atan2(way.y1 - way.cy, way.x1 - way.cx);
  pen.beginPath();
  pen.moveTo(way.x1 + Math.cos(angle) * 2, way.y1 + Math.sin(angle) * 2);
  for (const side of [2.7, -2.7]) pen.lineTo(way.x1 + Math.cos(angle + side) * size, way.y1 + Math.sin(angle + side) * size);
  pen.closePath();
  pen.fill();
}
function clip(pen, text, wide) {
  if (pen.measureText(text).width <= wide) return text;
  let short = text;
  while (short.length > 1 && pen.measureText(`${short}…`).width > wide) short = short.slice(0, -1);
  return `${short}…`;
}
