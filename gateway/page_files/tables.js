// Nodes, blobs and preheats as tables. Rows are kept and filled anew, so that nothing flickers and
// what is selected stays selected.

import { AWAY, FETCHING, SOURCES, fromWhere } from "./model.js";
import { bytes, clock, compare, count, percent, plural, rate, shortDigest, zoneName } from "./format.js";

const $ = (id) => document.getElementById(id);

export function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}
/** Only what is new is written: the browser then has nothing to lay out. */
export function say(element, text) { if (element.textContent !== text) element.textContent = text; }

/** Shows so many of a list of things as rows, which `fresh` makes and `fill` fills. */
class Rows {
  constructor(body, key, fresh, fill) { Object.assign(this, { body, key, fresh, fill, rows: new Map() }); }

  show(things) {
    const kept = new Map();
    let at = this.body.firstElementChild;
    for (const thing of things) {
      const key = this.key(thing);
      const row = this.rows.get(key) ?? this.fresh(thing);
      kept.set(key, row);
      this.fill(row, thing);
      if (row === at) at = at.nextElementSibling;
      else this.body.insertBefore(row, at);
    }
    for (const [key, row] of this.rows) if (!kept.has(key)) row.remove();
    this.rows = kept;
  }
}

function bar(kinds) {
  const box = make("div", "bar");
  const track = make("div", "track");
  const parts = kinds.map((kind) => track.appendChild(make("i", `i-${kind}`)));
  const label = make("b");
  const from = make("span", "from");
  track.setAttribute("role", "img");
  box.append(track, label, from);
  return { box, track, parts, label, from };
}
function setBar(drawn, shares, label, spoken) {
  shares.forEach((share, i) => {
    const width = `${(share * 100).toFixed(1)}%`;
    if (drawn.parts[i].style.width !== width) drawn.parts[i].style.width = width;
  });
  say(drawn.label, label);
  if (drawn.track.getAttribute("aria-label") !== spoken) drawn.track.setAttribute("aria-label", spoken);
}

// ---- nodes

export class Nodes {
  constructor(model, draw) {
    this.model = model;
    this.limit = 25;
    this.rows = new Rows($("nodes"), (node) => node.id, freshNode, fillNode);
    for (const id of ["nodes-find", "nodes-state"]) $(id).addEventListener("input", () => { this.limit = 25; draw(); });
    $("nodes-more").addEventListener("click", () => { this.limit += 50; draw(); });
  }
  draw() {
    const wanted = $("nodes-find").value.trim().toLowerCase();
    const state = $("nodes-state").value;
    const found = [...this.model.nodes.values()].filter((node) =>
      (state === "" || node.state === Number(state)) &&
      (!wanted || node.name.toLowerCase().includes(wanted) || zoneName(node.zone).toLowerCase().includes(wanted)));
    const rank = (node) => (node.state === AWAY ? 0 : node.state === FETCHING ? 1 : 2);
    found.sort((a, b) => rank(a) - rank(b) || compare(a.name, b.name));
    this.rows.show(found.slice(0, this.limit));
    const n = Math.min(found.length, this.limit);
    say($("nodes-count"), found.length > n ? `${count(n)} of ${plural(found.length, "node")}` : plural(found.length, "node"));
    $("nodes-more").hidden = found.length <= n;
  }
}
function freshNode() {
  const row = make("tr");
  const name = make("td");
  const label = name.appendChild(make("span", "name"));
  const role = name.appendChild(make("span", "role", "seed"));
  const zone = name.appendChild(make("span", "tag"));
  const progress = bar(SOURCES);
  const cell = make("td", "wide");
  cell.append(progress.box);
  const numbers = ["n", "n", "n opt", "n opt"].map((kind) => make("td", kind));
  row.append(name, cell, ...numbers);
  row.made = { label, role, zone, progress, numbers };
  return row;
}
function fillNode(row, node) {
  const { label, role, zone, progress, numbers } = row.made;
  say(label, node.name);
  say(zone, zoneName(node.zone));
  role.hidden = node.role !== "seed";
  row.className = node.state === AWAY ? "away" : "";
  const from = fromWhere(node, percent);
  const word = node.state === AWAY ? "away" : node.state === FETCHING ? percent(node.progress) : from ? "all" : "idle";
  setBar(progress, node.parts.map((n) => (node.whole ? n / node.whole : 0)), word, `${word}${from ? `: ${from}` : ""}`);
  say(progress.from, node.state === AWAY ? "its peer does not answer" : from);
  [rate(node.into), rate(node.out), count(node.complete), bytes(node.used)].forEach((text, i) => say(numbers[i], text));
  numbers[0].classList.toggle("on", node.into > 0);
  numbers[1].classList.toggle("on", node.out > 0);
}

// ---- blobs

export class Blobs {
  constructor(model, draw) {
    this.model = model;
    this.limit = 12;
    this.rows = new Rows($("blobs"), (blob) => blob.digest, freshBlob, (row, blob) => fillBlob(row, blob, model));
    $("blobs-more").addEventListener("click", () => { this.limit += 30; draw(); });
  }
  draw() {
    const found = [...this.model.blobs.values()];
    found.sort((a, b) => (b.coming > 0) - (a.coming > 0) || compare(a.digest, b.digest));
    this.rows.show(found.slice(0, this.limit));
    const moving = found.filter((blob) => blob.coming > 0).length;
    const total = Math.max(this.model.totals.blobs, found.length);
    say($("blobs-count"), total ? `${count(total)} known${moving ? `, ${count(moving)} on the move` : ""}` : "");
    $("blobs-more").hidden = found.length <= this.limit;
    $("blobs-empty").hidden = found.length > 0;
  }
}
function freshBlob(blob) {
  const row = make("tr");
  const digest = make("td");
  const code = digest.appendChild(make("code", "", shortDigest(blob.digest)));
  code.title = blob.digest;
  const about = digest.appendChild(make("div", "small"));
  const copies = bar(["copies", "coming"]);
  copies.from.remove();
  const cell = make("td", "wide");
  const note = make("div", "small");
  cell.append(copies.box, note);
  row.append(digest, cell);
  row.made = { about, copies, note };
  return row;
}
function fillBlob(row, blob, model) {
  const { about, copies, note } = row.made;
  const nodes = Math.max(model.nodes.size, 1);
  const size = blob.size === null ? "size not known yet" : bytes(blob.size);
  say(about, blob.upstream ? `${size} · ${blob.upstream}` : size);
  const fetcher = blob.fetcher === null ? "" : `; ${model.name(blob.fetcher)} asks the origin`;
  const words = blob.coming
    ? `${count(blob.coming)} getting it${blob.wanted ? `, ${percent(blob.held / blob.wanted)} there` : ""}${fetcher}` : "";
  const half = blob.wanted ? (blob.coming * blob.held) / blob.wanted : 0;
  const spoken = `whole on ${plural(blob.complete, "node")} of ${count(nodes)}${words ? `; ${words}` : ""}`;
  setBar(copies, [blob.complete / nodes, half / nodes], `${count(blob.complete)}/${count(nodes)}`, spoken);
  say(note, words);
}

// ---- preheats

const STATES = { running: "▶ running", done: "✓ done", failed: "✕ failed", cancelled: "■ cancelled" };

export class Jobs {
  constructor(model) {
    this.model = model;
    this.rows = new Rows($("jobs"), (job) => job.job, freshJob, fillJob);
  }
  draw() {
    const found = [...this.model.jobs.values()];
    found.sort((a, b) => (b.state === "running") - (a.state === "running") || compare(b.created, a.created));
    this.rows.show(found);
    const running = found.filter((job) => job.state === "running").length;
    say($("jobs-count"), found.length ? `${count(running)} running of ${count(found.length)}` : "");
    $("jobs-empty").hidden = found.length > 0;
  }
}
function freshJob() {
  const item = make("li");
  const top = make("div", "job-top");
  const name = make("span", "name");
  const state = make("span", "state");
  top.append(name, state);
  const progress = bar(["peer"]);
  progress.from.remove();
  const note = make("p", "small");
  const trouble = make("p", "trouble");
  item.append(top, progress.box, note, trouble);
  item.made = { name, state, progress, note, trouble };
  return item;
}
function fillJob(item, job) {
  const { name, state, progress, note, trouble } = item.made;
  say(name, job.what);
  name.title = `job ${job.job}: ${job.what}`;
  say(state, STATES[job.state] ?? job.state);
  state.className = `state ${job.state}`;
  const whole = job.bytes * job.nodes;
  const share = job.state === "done" ? 1 : whole ? Math.min(job.held / whole, 1) : 0;
  progress.box.hidden = job.state !== "running";
  setBar(progress, [share], percent(share), `${percent(share)} of ${bytes(whole)}`);
  say(note, `${count(job.done)} of ${plural(job.nodes, "node")} · ${plural(job.blobs, "blob")}, ${bytes(job.bytes)} per node · to ${job.to} · since ${clock(Date.parse(job.created))}`);
  const who = job.in_trouble ? `${plural(job.in_trouble, "node")} in trouble` : "";
  say(trouble, job.trouble || who);
  trouble.hidden = !trouble.textContent;
}
