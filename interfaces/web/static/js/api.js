// Commands to the server: each is sent once, and what it refuses is said in its own words.

/** What the server says no to, or the line that broke; `message` is for people. */
export class Refused extends Error {}

/** Sends a command, such as post("batches", id, "cancel", {reason}). Raises Refused. */
export async function post(kind, id, act, body = null) {
  const headers = { "Idempotency-Key": crypto.getRandomValues(new BigUint64Array(2)).join("-") };
  if (body) headers["Content-Type"] = "application/json";
  return answerOf(`/v1/${kind}/${id}/${act}`, {
    method: "POST", headers, body: body && JSON.stringify(body),
  });
}

/** Who is signed in here; null for nobody. */
export async function principal() {
  try {
    return await answerOf("/v1/principal", {});
  } catch (error) {
    if (error instanceof Refused) return null;
    throw error;
  }
}

async function answerOf(path, options) {
  let answer;
  try {
    answer = await fetch(path, { credentials: "same-origin", ...options });
  } catch {
    throw new Refused("The server cannot be reached. Nothing is known to have changed; try again.");
  }
  const said = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Refused(said.detail ?? said.title ?? `The server answered ${answer.status}.`);
  return said;
}
