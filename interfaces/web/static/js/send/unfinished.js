// Unfinished uploads of this browser, kept over a reload: batches and counts, no bytes, no file names.

const KEY = "uptrail.sending";
const MAX_BATCHES = 8;

/** [{batch, label, root, files, bytes, at}], newest first. */
export function unfinishedBatches() {
  try {
    const found = JSON.parse(localStorage.getItem(KEY) ?? "[]");
    return Array.isArray(found) ? found : [];
  } catch {
    return []; // storage is blocked or its content is not ours
  }
}

export function saveUnfinished(entry) {
  store([{ ...entry, at: new Date().toISOString() }, ...entriesExcept(entry.batch)].slice(0, MAX_BATCHES));
}

export function forgetUnfinished(batch) {
  store(entriesExcept(batch));
}

/** Return the unfinished upload with this folder, number of files and bytes, or null. */
export function findUnfinished({ root, files, bytes }) {
  return unfinishedBatches().find((entry) => entry.root === root && entry.files === files && entry.bytes === bytes) ?? null;
}

const entriesExcept = (batch) => unfinishedBatches().filter((entry) => entry.batch !== batch);

function store(entries) {
  try {
    localStorage.setItem(KEY, JSON.stringify(entries));
  } catch {
    // Without storage an upload is not offered after a reload; the batch can still be chosen by hand.
  }
}
