// Numbers and names as people read them.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

/** [number, unit] of a count of bytes: three digits that matter. */
export function bytesParts(n) {
  let i = 0;
  while (n >= 1000 && i < UNITS.length - 1) { n /= 1024; i += 1; }
  const digits = i === 0 || n >= 99.95 ? 0 : n >= 9.995 ? 1 : 2;
  return [n.toFixed(digits), UNITS[i]];
}
export const bytes = (n) => bytesParts(n).join("\u00a0");
export const rate = (n) => (n > 0 ? `${bytes(n)}/s` : "–");
export const percent = (part) => {
  const p = part * 100;
  // Nearly all is not all, and nearly nothing is not nothing.
  if (p > 99.5 && p < 100) return "99\u00a0%";
  return p > 0 && p < 1 ? "<1\u00a0%" : `${Math.round(p)}\u00a0%`;
};
export const count = (n) => String(n).replace(/\B(?=(\d{3})+$)/g, "\u202f");
export const shortDigest = (digest) => {
  const [kind, hex] = digest.split(":");
  return `${kind}:${(hex ?? "").slice(0, 12)}`;
};
export const zoneName = (zone) => zone || "no zone";
export const clock = (ms) => new Date(ms).toLocaleTimeString("en-GB");
export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

const byText = new Intl.Collator("en", { numeric: true });
export const compare = byText.compare;
