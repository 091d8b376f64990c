// Bytes to an upload by tus 1.0.0 (tus.io/protocols/resumable-upload), from where it stands.

import { LOST, Trouble } from "./trouble.js";

const PIECE = 64 * 2 ** 20; // bytes of one request: proxies refuse longer ones
const PATIENCE = 60_000; // milliseconds without a byte moving after which a request is given up
const HEADERS = { "Tus-Resumable": "1.0.0" };
const GONE = {
  401: "The session has ended: sign in again.",
  404: "The server no longer has this upload.",
  410: "The upload was cancelled or has expired: upload the file in a new batch.",
};

/** How many bytes the server has (HEAD). Raises Trouble. */
export async function offsetOf(upload, signal) {
  let answer;
  try {
    answer = await fetch(`/v1/uploads/${upload}`, { method: "HEAD", headers: HEADERS, cache: "no-store", signal });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Trouble(LOST, 0);
  }
  if (!answer.ok) throw refusal(answer.status, null, answer.headers.get("Retry-After"));
  return Number(answer.headers.get("Upload-Offset"));
}

/**
 * Sends the next piece of a file (PATCH), and returns how many bytes the server has then.
 * `moved(bytes)` hears how far it is. Raises Trouble; AbortError when the signal says so.
 */
export function append(upload, file, offset, signal, moved) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest(); // fetch does not tell how much it has sent
    const abort = () => request.abort();
    let dead = false;
    let watch = null;
    const watched = () => {
      clearTimeout(watch);
      watch = setTimeout(() => { dead = true; request.abort(); }, PATIENCE);
    };
    request.open("PATCH", `/v1/uploads/${upload}`);
    for (const [name, value] of Object.entries(HEADERS)) request.setRequestHeader(name, value);
    request.setRequestHeader("Upload-Offset", offset);
    request.setRequestHeader("Content-Type", "application/offset+octet-stream");
    request.upload.onprogress = ({ loaded }) => { watched(); moved(offset + loaded); };
    request.onload = () => {
      if (request.status === 204) resolve(Number(request.getResponseHeader("Upload-Offset")));
      else reject(refusal(request.status, request.responseText, request.getResponseHeader("Retry-After")));
    };
    request.onerror = () => reject(new Trouble(LOST, 0));
    request.onabort = () => reject(dead ? new Trouble(LOST, 0) : signal.reason);
    request.onloadend = () => {
      clearTimeout(watch);
      signal.removeEventListener("abort", abort);
    };
    signal.addEventListener("abort", abort);
    watched();
    request.send(file.slice(offset, offset + PIECE));
  });
}

/** The server's own words where it has said any. */
function refusal(status, body, after) {
  let said = null;
  try {
    said = body && JSON.parse(body).detail;
  } catch {
    // a proxy between us and the server speaks in pages
  }
  return new Trouble(said || GONE[status] || `The server responded with status ${status}.`, status, after && Number(after));
}
