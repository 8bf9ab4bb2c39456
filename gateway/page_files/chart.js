// Bytes per second by source over the last two minutes, as areas on top of each other.

import { SOURCES } from "./model.js";
import { bytes, bytesParts, rate } from "./format.js";

const SECONDS = 120;

/** A canvas in device pixels, and its context in those of CSS. */
export function fit(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas;
  const scale = window.devicePixelRatio || 1;
  const [w, h] = [Math.round(width * scale), Math.round(height * scale)];
  if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
  const pen = canvas.getContext("2d");
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, width, height);
  return { pen, width, height };
}

/** The page's colours as they are now: light or dark. */
export function colours() {
  const style = getComputedStyle(document.documentElement);
  const names = ["text", "dim", "faint", "line", "soft", "card", "back", "good", "focus", "warn-line", ...SOURCES];
  return Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}

export const FONT = '12px system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif';

/** The least of 1, 2, 5 times a power of ten, in the unit that `n` is written in, that is not below it. */
function roundUp(n) {
  if (n <= 0) return 1024 * 1024;
  const unit = 1024 ** ["B", "KiB", "MiB", "GiB", "TiB", "PiB"].indexOf(bytesParts(n)[1]);
  const power = 10 ** Math.floor(Math.log10(n / unit));
  const step = [1, 2, 5, 10].find((each) => each * power * unit >= n);
  return step * power * unit;
}

/** The same stripes as the bars have, so that sources differ by more than colour. */
export function pattern(pen, source, tone) {
  if (source !== "seed" && source !== "origin") return tone;
  const tile = document.createElement("canvas");
  tile.width = tile.height = 8;
  const brush = tile.getContext("2d");
  brush.fillStyle = tone;
  brush.fillRect(0, 0, 8, 8);
  brush.strokeStyle = "rgb(255 255 255 / .4)";
  brush.lineWidth = 1.6;
  brush.beginPath();
  if (source === "seed") { brush.moveTo(4, 0); brush.lineTo(4, 8); }
  else { brush.moveTo(-2, 10); brush.lineTo(10, -2); brush.moveTo(-2, 2); brush.lineTo(2, -2); brush.moveTo(6, 10); brush.lineTo(10, 6); }
  brush.stroke();
  return pen.createPattern(tile, "repeat");
}

export function drawRates(canvas, model, tones) {
  const { pen, width, height } = fit(canvas);
  const left = 72, right = width - 2, top = 10, bottom = height - 20;
  const rows = model.history;
  const now = rows.length ? rows[rows.length - 1][0] : 0;
  const highest = roundUp(Math.max(0, ...rows.map((row) => row[1] + row[2] + row[3] + row[4])));
  const x = (at) => right - ((now - at) / 1000 / SECONDS) * (right - left);
  const y = (value) => bottom - (value / highest) * (bottom - top);
  pen.font = FONT;
  pen.textBaseline = "middle";
  pen.lineWidth = 1;
  for (const part of [0, 0.5, 1]) {
    pen.strokeStyle = tones.line;
    pen.beginPath(); pen.moveTo(left, Math.round(y(part * highest)) + 0.5); pen.lineTo(right, Math.round(y(part * highest)) + 0.5); pen.stroke();
    pen.fillStyle = tones.dim;
    pen.textAlign = "right";
    if (part) pen.fillText(`${bytes(part * highest).replace(/\.?0+(?=\u00a0)/, (end) => (end[0] === "." ? "" : end))}/s`, left - 6, y(part * highest));
    else pen.fillText("0", left - 6, y(0));
  }
  pen.fillStyle = tones.faint;
  pen.textBaseline = "bottom";
  for (const ago of [120, 60, 0]) {
    pen.textAlign = ago === 120 ? "left" : ago === 0 ? "right" : "center";
    pen.fillText(ago ? `${ago} s ago` : "now", right - (ago / SECONDS) * (right - left), height);
  }
  pen.save();
  pen.beginPath(); pen.rect(left, 0, right - left, bottom + 1); pen.clip();
  const floor = rows.map(() => 0);
  // The origin lies at the bottom, where its line is easiest to read.
  for (const i of [3, 2, 1, 0]) {
    const roof = rows.map((row, k) => floor[k] + row[i + 1]);
    if (rows.length > 1 && roof.some((value, k) => value > floor[k])) {
      pen.beginPath();
      rows.forEach((row, k) => pen.lineTo(x(row[0]), y(roof[k])));
      for (let k = rows.length - 1; k >= 0; k -= 1) pen.lineTo(x(rows[k][0]), y(floor[k]));
      pen.closePath();
      pen.fillStyle = pattern(pen, SOURCES[i], tones[SOURCES[i]]);
      pen.globalAlpha = 0.88;
      pen.fill();
      pen.globalAlpha = 1;
    }
    roof.forEach((value, k) => { floor[k] = value; });
  }
  pen.restore();
  const words = SOURCES.map((source, i) => `${source} ${rate(model.totals.rates[i])}`).join(", ");
  canvas.setAttribute("aria-label", `Bytes per second by source, now: ${words}; the highest in two minutes is under ${bytes(highest)}/s`);
}
