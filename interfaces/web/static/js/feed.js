// The connection to the feed: it comes back by itself, and goes on where it was cut.

const FIRST_WAIT = 500; // milliseconds; doubled at each failure, with full jitter
const LONGEST_WAIT = 15000;
const FINAL = (code) => code >= 4500 && code < 4600;
const SIGNED_OUT = new Set([4500, 4501]);

export class Feed {
  #socket = null;
  #timer = null;
  #deadline = null;
  #failures = 0;
  #heartbeat = 15;

  /** `store` takes the frames, `changed` hears of those that count, `link` of the connection. */
  constructor(store, { changed, link, refused }) {
    this.store = store;
    this.changed = changed;
    this.link = link;
    this.refused = refused;
    this.batches = "*";
    this.refusal = null;
    addEventListener("online", () => this.#now());
    document.addEventListener("visibilitychange", () => {
      if (document.visibilityState === "visible") this.#now();
    });
  }

  /** Follows these batches from now on, from a snapshot, unless it does so already. */
  follow(batches) {
    if (this.#socket && !this.refusal && String(batches) === String(this.batches)) return;
    this.refusal = null;
    this.batches = batches;
    this.store.forget();
    if (this.#socket?.readyState === WebSocket.OPEN) this.#subscribe();
    else if (!this.#socket) this.#connect();
  }

  #now() {
    if (this.#timer === null) return;
    this.#failures = 0;
    this.#connect();
  }

  #connect() {
    clearTimeout(this.#timer);
    this.#timer = null;
    if (!this.#failures) this.link({ state: "connecting" });
    const url = new URL("/v1/feed", location.href);
    url.protocol = url.protocol.replace("http", "ws");
    const socket = new WebSocket(url, "uptrail.v1.json");
    this.#socket = socket;
    let opened = false;
    socket.onopen = () => {
      opened = true;
      this.#subscribe();
      this.#alive();
    };
    socket.onmessage = (message) => this.#hear(socket, JSON.parse(message.data));
    socket.onclose = ({ code }) => {
      if (socket === this.#socket) this.#lost(code, opened);
    };
  }

  #subscribe() {
    const after = this.store.cursor;
    const least = after ? null : "latest"; // a batch that was just started is there
    this.#socket.send(JSON.stringify({ type: "subscribe", batches: this.batches, after, min_position: least }));
  }

  #hear(socket, frame) {
    if (socket !== this.#socket) return;
    this.#alive();
    switch (frame.type) {
      case "welcome":
        this.#heartbeat = frame.heartbeat ?? this.#heartbeat;
        break;
      case "authenticate": // we have nothing to show: the session is not there
        this.#end("signed-out");
        break;
      case "ping":
        socket.send('{"type":"pong"}');
        break;
      case "error":
        if (frame.code === "position_not_reached") { // nothing is followed yet: ask again
          setTimeout(() => { if (socket === this.#socket) this.#subscribe(); }, FIRST_WAIT);
          break;
        }
        this.refusal = frame;
        this.refused(frame);
        break;
      case "snapshot":
      case "changes":
      case "reset": {
        this.#failures = 0;
        if (frame.type !== "reset") this.link({ state: "live" });
        const change = this.store.apply(frame);
        if (change) this.changed(change);
      }
    }
  }

  /** Without a sound for longer than the server ever keeps quiet, the connection is dead. */
  #alive() {
    clearTimeout(this.#deadline);
    const socket = this.#socket;
    this.#deadline = setTimeout(() => {
      socket.close();
      if (socket === this.#socket) this.#lost(1006, true);
    }, this.#heartbeat * 2500);
  }

  async #lost(code, opened) {
    clearTimeout(this.#deadline);
    this.#socket = null;
    if (SIGNED_OUT.has(code)) return this.link({ state: "signed-out" });
    if (FINAL(code)) return this.link({ state: "ended", code });
    if (!opened && (await this.#isSignedOut())) return this.link({ state: "signed-out" });
    const wait = Math.random() * Math.min(LONGEST_WAIT, FIRST_WAIT * 2 ** this.#failures++);
    this.link({ state: "reconnecting", at: Date.now() + wait });
    this.#timer = setTimeout(() => this.#connect(), wait);
  }

  /** A browser is not told why a WebSocket was refused; a plain request is. */
  async #isSignedOut() {
    try {
      return (await fetch("/v1/batches?limit=1")).status === 401;
    } catch {
      return false;
    }
  }

  #end(state) {
    const socket = this.#socket;
    this.#socket = null;
    clearTimeout(this.#deadline);
    socket.close();
    this.link({ state });
  }
}
