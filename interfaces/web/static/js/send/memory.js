// The batches this browser has not finished sending, kept over a reload; no bytes, no file names.

const KEY = "uptrail.sending";
const MOST = 8;

/** [{batch, label, root, files, bytes, at}], newest first. */
export function remembered() {
  try {
    const found = JSON.parse(localStorage.getItem(KEY) ?? "[]");
    return Array.isArray(found) ? found : [];
  } catch {
    return []; // storage that is blocked, or was written by somebody else
  }
}

export function remember(entry) {
  keep([{ ...entry, at: new Date().toISOString() }, ...others(entry.batch)].slice(0, MOST));
}

export function forget(batch) {
  keep(others(batch));
}

/** What was being sent when it had the same name and as many files and bytes. */
export function recalled({ root, files, bytes }) {
  return remembered().find((entry) => entry.root === root && entry.files === files && entry.bytes === bytes) ?? null;
}

const others = (batch) => remembered().filter((entry) => entry.batch !== batch);

function keep(entries) {
  try {
    localStorage.setItem(KEY, JSON.stringify(entries));
  } catch {
    // Without storage a reload is not remembered; the batch can still be chosen by hand.
  }
}
