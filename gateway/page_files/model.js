// The cluster as the stream tells it: one whole picture, then what changes.
// The rows are those of passel.telemetry.scene.

import { compare } from "./format.js";

export const SOURCES = ["local", "peer", "seed", "origin"];
export const ORIGIN = 0;
export const AWAY = 0, IDLE = 1, FETCHING = 2;
const HISTORY = 120;
const WHOLE_ROW = 14;
const FIXED = 4;

export class Model {
  constructor() { this.reset(); this.version = 0; }

  reset() {
    this.nodes = new Map();
    this.blobs = new Map();
    this.jobs = new Map();
    this.edges = [];
    this.zoneFlows = [];
    this.history = [];
    this.totals = { rates: [0, 0, 0, 0], cross_zone: 0, bytes: [0, 0, 0, 0], blobs: 0, shards_away: 0 };
    this.cluster = "";
    this.at = 0;
    this.zones = [];
  }

  /** Take a frame in; true if nodes came or went, so that they must be placed anew. */
  apply(frame) {
    if (frame.kind === "all") this.reset();
    this.version = frame.version;
    let moved = frame.kind === "all";
    if (frame.cluster !== undefined) this.cluster = frame.cluster;
    if (frame.at !== undefined) this.at = frame.at;
    if (frame.totals) this.totals = frame.totals;
    if (frame.edges) this.edges = frame.edges;
    if (frame.zone_flows) this.zoneFlows = frame.zone_flows;
    for (const id of frame.gone ?? []) { this.nodes.delete(id); moved = true; }
    for (const row of frame.nodes ?? []) {
      if (row.length === WHOLE_ROW) {
        const [id, name, zone, role] = row;
        this.nodes.set(id, { id, name, zone, role });
        moved = true;
      }
      const node = this.nodes.get(row[0]);
      if (node) fill(node, row.slice(row.length === WHOLE_ROW ? FIXED : 1));
    }
    for (const digest of frame.blobs_gone ?? []) this.blobs.delete(digest);
    for (const [digest, size, upstream, complete, coming, held, wanted, fetcher] of frame.blobs ?? []) {
      this.blobs.set(digest, { digest, size, upstream, complete, coming, held, wanted, fetcher });
    }
    for (const job of frame.jobs_gone ?? []) this.jobs.delete(job);
    for (const job of frame.jobs ?? []) this.jobs.set(job.job, job);
    if (frame.history) this.history = frame.history;
    else if (frame.kind === "change") this.history.push([this.at, ...this.totals.rates, this.totals.cross_zone]);
    if (this.history.length > HISTORY) this.history.splice(0, this.history.length - HISTORY);
    if (moved) this.#group();
    return moved;
  }

  #group() {
    const zones = new Map();
    for (const node of this.nodes.values()) {
      if (!zones.has(node.zone)) zones.set(node.zone, []);
      zones.get(node.zone).push(node);
    }
    // Seeds first: they stand nearest to the origin.
    const order = (a, b) => (b.role === "seed") - (a.role === "seed") || compare(a.name, b.name);
    this.zones = [...zones].map(([name, nodes]) => ({ name, nodes: nodes.sort(order) }));
    this.zones.sort((a, b) => compare(a.name, b.name));
  }

  name(id) { return id === ORIGIN ? "the origin" : this.nodes.get(id)?.name ?? "?"; }
}

function fill(node, row) {
  const [state, complete, used, into, out, here, peer, seed, origin, missing] = row;
  Object.assign(node, { state, complete, used, into, out, missing });
  node.parts = [here, peer, seed, origin];
  node.whole = here + peer + seed + origin + missing;
  node.progress = node.whole > 0 ? (node.whole - missing) / node.whole : 1;
}

/** "40 % from peers, 22 % from seeds": where what a node has of it came from. */
export function fromWhere(node, percent) {
  const have = node.parts.reduce((a, b) => a + b, 0);
  if (!have) return "";
  const words = ["here", "peer", "seed", "origin"];
  return node.parts.map((n, i) => [n, i]).filter(([n]) => n > 0)
    .map(([n, i]) => `${words[i]} ${percent(n / have)}`).join(" · ");
}
