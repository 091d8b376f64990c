// Dropped or chosen files with their paths; folders are walked.

export const MAX_FILES = 100_000; // files at a time; their handles are held in memory

export class TooManyFiles extends Error {
  constructor() {
    super(`More than ${MAX_FILES.toLocaleString("en")} files were chosen. Upload them in several parts, or with: uptrail upload`);
  }
}

/** Return the files of a FileList as [{path, file}]. Raises TooManyFiles. */
export function filesOfList(list) {
  if (list.length > MAX_FILES) throw new TooManyFiles();
  return [...list].map((file) => ({ path: file.webkitRelativePath || file.name, file }));
}

/**
 * Return the files of a drop, including those in folders. Unreadable ones have `problem` instead of
 * `file`. Call it within the event: the browser clears the data afterwards.
 * Raises TooManyFiles.
 */
export function filesOfDrop(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  return entries.length ? walkEntries(entries) : Promise.resolve(filesOfList(transfer.files));
}

async function walkEntries(entries) {
  const found = [];
  const waiting = entries.reverse();
  while (waiting.length) {
    const entry = waiting.pop();
    const path = entry.fullPath.slice(1);
    try {
      if (entry.isDirectory) waiting.push(...await entriesOf(entry));
      else found.push({ path, file: await toPromise((done, failed) => entry.file(done, failed)) });
    } catch (error) {
      if (error instanceof TooManyFiles) throw error;
      found.push({ path, problem: `cannot be read: ${error.message}` });
    }
    if (found.length + waiting.length > MAX_FILES) throw new TooManyFiles();
  }
  return found.sort((a, b) => (a.path < b.path ? -1 : 1));
}

/** Return all entries of a folder. Browsers return them in pages of 100 until a page is empty. */
async function entriesOf(folder) {
  const reader = folder.createReader();
  const all = [];
  for (;;) {
    const page = await toPromise((done, failed) => reader.readEntries(done, failed));
    if (!page.length) return all;
    all.push(...page);
    if (all.length > MAX_FILES) throw new TooManyFiles();
  }
}

const toPromise = (act) => new Promise((resolve, reject) => act(resolve, reject));
