// Parser of /metrics (Prometheus text format).

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

/** Return metrics by name, each [{labels, value}]; NaN (not measurable) becomes null. */
export function parseMetrics(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    const [, name, labels, value] = LINE.exec(line) ?? [];
    if (!name) continue;
    if (!found.has(name)) found.set(name, []);
    const number = Number(value);
    found.get(name).push({
      labels: Object.fromEntries([...(labels ?? "").matchAll(LABEL)].map(([, key, label]) => [key, label])),
      value: Number.isFinite(number) ? number : null,
    });
  }
  return found;
}

/** Return the value of a metric with these labels, or null. */
export function valueOf(metrics, name, labels = {}) {
  const lines = metrics.get(name) ?? [];
  const fits = (line) => Object.entries(labels).every(([key, value]) => line.labels[key] === value);
  return lines.find(fits)?.value ?? null;
}
