// Reads what /metrics says, in the text format of Prometheus.

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

/** Metrics by name, each [{labels, value}]; NaN is null: it could not be measured. */
export function parsed(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    const [, name, labels, value] = LINE.exec(line) ?? [];
    if (!name) continue;
    if (!found.has(name)) found.set(name, []);
    const number = Number(value);
    found.get(name).push({
      labels: Object.fromEntries([...(labels ?? "").matchAll(LABEL)].map(([, key, said]) => [key, said])),
      value: Number.isFinite(number) ? number : null,
    });
  }
  return found;
}

/** The value of a metric with these labels; null where it is not known. */
export function valueOf(metrics, name, labels = {}) {
  const lines = metrics.get(name) ?? [];
  const fits = (line) => Object.entries(labels).every(([key, value]) => line.labels[key] === value);
  return lines.find(fits)?.value ?? null;
}
