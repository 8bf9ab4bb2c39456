// The page: listens to the stream, keeps the model, and draws at most once per frame of the screen.

import { AWAY, FETCHING, Model, SOURCES } from "./model.js";
import { Graph } from "./graph.js";
import { FONT, colours, drawRates, fit, pattern } from "./chart.js";
import { Blobs, Jobs, Nodes, make, say } from "./tables.js";
import { bytes, bytesParts, clock, count, percent, plural, rate } from "./format.js";

const $ = (id) => document.getElementById(id);
/** There is news every second; who hears nothing for so long shows it. */
const STALE_MS = 5000;
const RETRY_MS = [1000, 2000, 4000, 8000];

const model = new Model();
const graph = new Graph($("graph"), $("graph-detail"), model);
const nodes = new Nodes(model, later);
const blobs = new Blobs(model, later);
const jobs = new Jobs(model);
const feed = { heardAt: 0, isOpen: false, tries: 0, trouble: "" };

// ---- the stream

function listen() {
  const source = new EventSource("ui/events");
  source.onopen = () => { feed.isOpen = true; feed.tries = 0; };
  source.onmessage = (event) => hear(JSON.parse(event.data));
  source.onerror = () => {
    // A browser tries again by itself only for some errors; one way for all is easier to trust.
    source.close();
    feed.isOpen = false;
    showState();
    setTimeout(listen, RETRY_MS[Math.min(feed.tries, RETRY_MS.length - 1)]);
    feed.tries += 1;
  };
}
function hear(frame) {
  feed.heardAt = Date.now();
  if (frame.kind === "trouble") feed.trouble = frame.why;
  else {
    feed.trouble = "";
    if (frame.kind !== "well" && model.apply(frame)) graph.place();
  }
  later();
}

// ---- drawing

let isDue = false;
function later() {
  if (isDue) return;
  isDue = true;
  requestAnimationFrame(() => { isDue = false; draw(); });
}
function draw() {
  showState();
  if (!model.version) return;
  showTiles();
  graph.draw();
  const tones = colours();
  drawRates($("rates"), model, tones);
  nodes.draw();
  blobs.draw();
  jobs.draw();
}

function showState() {
  const silent = Date.now() - feed.heardAt;
  const [badge, banner] = [$("live"), $("banner")];
  let title = "", text = "";
  if (!feed.isOpen && feed.heardAt) [title, text] = ["The gateway does not answer.", "The page tries again by itself."];
  else if (!feed.isOpen) [title, text] = feed.tries ? ["No stream yet.", "The gateway does not answer, or as many browsers as may be are looking already. The page tries again by itself."] : ["", ""];
  else if (feed.trouble) [title, text] = ["No news from the cluster:", `${feed.trouble}. Reads through this gateway go on without it.`];
  else if (feed.heardAt && silent > STALE_MS) [title, text] = ["No news", `for ${Math.floor(silent / 5000) * 5} s.`];
  if (title && model.at) text += ` What you see is from ${clock(model.at)}.`;
  const isStale = title !== "";
  badge.className = `badge ${isStale ? "stale" : model.version ? "" : "waiting"}`;
  say($("live-text"), isStale ? "not live" : model.version ? "live" : "connecting");
  say($("banner-title"), title);
  say($("banner-text"), text);
  banner.hidden = !isStale;
  $("main").classList.toggle("stale", isStale && model.version > 0);
  document.title = `${isStale ? "(not live) " : ""}passel ${model.cluster}`.trim();
}

function big(element, n) {
  const [number, unit] = bytesParts(n);
  const text = `${number}\u00a0${unit}/s`;
  if (element.dataset.text === text) return;
  element.dataset.text = text;
  element.replaceChildren(document.createTextNode(number), make("small", "", `${unit}/s`));
}
function showTiles() {
  const { rates, cross_zone: cross, bytes: total, blobs: known, shards_away: away } = model.totals;
  const all = [...model.nodes.values()];
  const busy = all.filter((node) => node.state === FETCHING).length;
  const gone = all.filter((node) => node.state === AWAY).length;
  const words = [plural(all.length, "node"), plural(model.zones.length, "zone"), `${plural(known, "blob")} known`];
  if (busy) words.splice(1, 0, `${count(busy)} fetching`);
  if (gone) words.splice(1, 0, `${count(gone)} away`);
  if (away) words.push(`${plural(away, "scheduler shard")} away: progress may be old`);
  say($("cluster"), model.cluster);
  say($("census"), words.join(" · "));
  const into = rates[1] + rates[2] + rates[3];
  big($("tile-in"), into);
  say($("tile-in-more"), into ? ["peers", "seeds", "origin"].map((who, i) => `${who} ${percent(rates[i + 1] / into)}`).join(" · ") : "from peers, seeds and the origin");
  big($("tile-origin"), rates[3]);
  say($("tile-origin-more"), `${bytes(total[3])} in all`);
  big($("tile-cross"), cross);
  say($("tile-cross-more"), into ? `${percent(Math.min(1, cross / into))} of what arrives` : "nothing crosses");
  const sum = total.reduce((a, b) => a + b, 0);
  say($("tile-saved"), sum ? percent((sum - total[3]) / sum) : "–");
  say($("rates-now"), `read locally ${rate(rates[0])}`);
}

/** Every source with its colour and its pattern, as bars and lines have them. */
function showLegend() {
  const words = { local: "here already", peer: "from a peer", seed: "from a seed", origin: "from the origin" };
  const tones = colours();
  $("legend").replaceChildren(...SOURCES.map((source) => {
    const item = make("li");
    const swatch = make("canvas");
    swatch.style.width = "16px";
    swatch.style.height = "11px";
    swatch.setAttribute("aria-hidden", "true");
    item.append(swatch, document.createTextNode(words[source]));
    requestAnimationFrame(() => {
      const { pen, width, height } = fit(swatch);
      pen.fillStyle = pattern(pen, source, tones[source]);
      pen.beginPath(); pen.roundRect(0, 0, width, height, 3); pen.fill();
    });
    return item;
  }));
}

// ---- begin

window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { showLegend(); later(); });
new ResizeObserver(later).observe($("graph"));
setInterval(showState, 1000);
showLegend();
listen();
