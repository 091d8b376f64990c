// What was dropped or chosen, as files with paths; folders are walked.

export const MOST = 100_000; // files at a time; their handles are held in memory

export class TooMany extends Error {
  constructor() {
    super(`More than ${MOST.toLocaleString("en")} files were chosen. Upload them in several parts, or with: uptrail upload`);
  }
}

/** The files of a list, such as that of an input: [{path, file}]. Raises TooMany. */
export function chosen(list) {
  if (list.length > MOST) throw new TooMany();
  return [...list].map((file) => ({ path: file.webkitRelativePath || file.name, file }));
}

/**
 * The files of a drop, those in folders too. What cannot be read has `problem` in place of `file`.
 * To be called within the event: the browser forgets what was dropped when it is over.
 * Raises TooMany.
 */
export function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  return entries.length ? walk(entries) : Promise.resolve(chosen(transfer.files));
}

async function walk(entries) {
  const found = [];
  const waiting = entries.reverse();
  while (waiting.length) {
    const entry = waiting.pop();
    const path = entry.fullPath.slice(1);
    try {
      if (entry.isDirectory) waiting.push(...await within(entry));
      else found.push({ path, file: await promised((done, failed) => entry.file(done, failed)) });
    } catch (error) {
      if (error instanceof TooMany) throw error;
      found.push({ path, problem: `cannot be read: ${error.message}` });
    }
    if (found.length + waiting.length > MOST) throw new TooMany();
  }
  return found.sort((a, b) => (a.path < b.path ? -1 : 1));
}

/** A browser gives the entries of a folder a hundred at a time, until it gives none. */
async function within(folder) {
  const reader = folder.createReader();
  const all = [];
  for (;;) {
    const some = await promised((done, failed) => reader.readEntries(done, failed));
    if (!some.length) return all;
    all.push(...some);
    if (all.length > MOST) throw new TooMany();
  }
}

const promised = (act) => new Promise((resolve, reject) => act(resolve, reject));
