// Client of tus 1.0.0 (tus.io/protocols/resumable-upload): offset and data of one upload.

import { CONNECTION_LOST, TransferError } from "./errors.js";

const MAX_REQUEST_BYTES = 64 * 2 ** 20; // bytes of one request: proxies refuse longer ones
const SILENCE_TIMEOUT = 60_000; // milliseconds without progress after which a request is aborted
const HEADERS = { "Tus-Resumable": "1.0.0" };
const STATUS_MESSAGES = {
  401: "The session has ended: sign in again.",
  404: "The server no longer has this upload.",
  410: "The upload was cancelled or has expired: upload the file in a new batch.",
};

/** Return how many bytes the server has (HEAD). Raises TransferError. */
export async function fetchOffset(upload, signal) {
  let response;
  try {
    response = await fetch(`/v1/uploads/${upload}`, { method: "HEAD", headers: HEADERS, cache: "no-store", signal });
  } catch (error) {
    throw error.name === "AbortError" ? error : new TransferError(CONNECTION_LOST, 0);
  }
  if (!response.ok) throw errorOf(response.status, null, response.headers.get("Retry-After"));
  return Number(response.headers.get("Upload-Offset"));
}

/**
 * Send the next chunk of a file (PATCH) and return the new offset. `progressed(bytes)` is called
 * with the offset reached so far. Raises TransferError, or the abort reason of the signal.
 */
export function sendChunk(upload, file, offset, signal, progressed) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest(); // fetch does not report upload progress
    const abort = () => request.abort();
    let timedOut = false;
    let timer = null;
    const restartTimer = () => {
      clearTimeout(timer);
      timer = setTimeout(() => { timedOut = true; request.abort(); }, SILENCE_TIMEOUT);
    };
    request.open("PATCH", `/v1/uploads/${upload}`);
    for (const [name, value] of Object.entries(HEADERS)) request.setRequestHeader(name, value);
    request.setRequestHeader("Upload-Offset", offset);
    request.setRequestHeader("Content-Type", "application/offset+octet-stream");
    request.upload.onprogress = ({ loaded }) => { restartTimer(); progressed(offset + loaded); };
    request.onload = () => {
      if (request.status === 204) resolve(Number(request.getResponseHeader("Upload-Offset")));
      else reject(errorOf(request.status, request.responseText, request.getResponseHeader("Retry-After")));
    };
    request.onerror = () => reject(new TransferError(CONNECTION_LOST, 0));
    request.onabort = () => reject(timedOut ? new TransferError(CONNECTION_LOST, 0) : signal.reason);
    request.onloadend = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", abort);
    };
    signal.addEventListener("abort", abort);
    restartTimer();
    request.send(file.slice(offset, offset + MAX_REQUEST_BYTES));
  });
}

/** Return an error with the message of the server, if there is one. */
function errorOf(status, body, after) {
  let detail = null;
  try {
    detail = body && JSON.parse(body).detail;
  } catch {
    // not JSON: an error page of a proxy
  }
  return new TransferError(detail || STATUS_MESSAGES[status] || `The server responded with status ${status}.`, status, after && Number(after));
}
