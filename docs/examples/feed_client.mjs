// Follows batches on Uptrail's feed: every change once, through any number of cuts.
// In a browser, or with Node.js 22 (20 with --experimental-websocket):
//   node feed_client.mjs http://127.0.0.1:8080 up_... BATCH [BATCH ...]

const FIRST_WAIT = 500; // milliseconds; doubled at each failure, times a random number
const LONGEST_WAIT = 15000;

const keyOf = {
  batches: (row) => row.id,
  uploads: (row) => row.id,
  attempts: (row) => `${row.upload} ${row.number}`,
};

export class FeedClient {
  /** Calls `changed(kind, row)` for every received row, `ended(code)` when reconnecting is futile. */
  constructor(url, key, batches, { changed, ended }) {
    Object.assign(this, { url, key, batches, changed, ended, failures: 0 });
    this.clear();
    this.connect();
  }

  clear() {
    this.rows = { batches: new Map(), uploads: new Map(), attempts: new Map() };
    this.position = -1;
    this.cursor = null;
  }

  connect() {
    const address = new URL("/v1/feed", this.url);
    address.protocol = address.protocol.replace("http", "ws");
    const socket = (this.socket = new WebSocket(address, "uptrail.v1.json"));
    socket.onmessage = ({ data }) => this.handle(JSON.parse(data));
    socket.onclose = ({ code }) => this.reconnect(code);
  }

  send(message) {
    this.socket.send(JSON.stringify(message));
  }

  handle(frame) {
    switch (frame.type) {
      case "authenticate": // authenticate first; again, with a newer key, before it expires
      case "expiring":
        return this.send({ type: "authenticate", token: this.key });
      case "welcome":
        if (this.subscribed !== this.socket) {
          this.subscribed = this.socket;
          const least = this.cursor ? null : "latest"; // no outcome from before the latest command
          this.send({ type: "subscribe", batches: this.batches, after: this.cursor, min_position: least });
        }
        return;
      case "ping":
        return this.send({ type: "pong" });
      case "error": // the read model is behind: reconnect and subscribe again
        if (frame.code === "position_not_reached") this.socket.close();
        return;
      case "reset":
        return this.clear();
      case "snapshot":
        if (frame.part === 1) this.clear();
        this.apply(frame);
        if (!frame.more) [this.position, this.cursor] = [frame.position, frame.cursor];
        return;
      case "changes": // applied once, also if it is sent again after a cut
        if (!(frame.from <= this.position && this.position < frame.to)) return;
        this.apply(frame);
        [this.position, this.cursor] = [frame.to, frame.cursor];
    }
  }

  apply(frame) {
    this.failures = 0;
    for (const kind of Object.keys(keyOf)) {
      for (const row of frame[kind]) {
        this.rows[kind].set(keyOf[kind](row), row);
        this.changed(kind, row);
      }
    }
  }

  reconnect(code) {
    if (this.closed || (code >= 4500 && code < 4600)) return this.ended(code);
    const wait = Math.random() * Math.min(LONGEST_WAIT, FIRST_WAIT * 2 ** this.failures++);
    setTimeout(() => this.connect(), wait);
  }

  close() {
    this.closed = true;
    this.socket.close();
  }
}

if (globalThis.process?.argv[1]?.endsWith("feed_client.mjs")) {
  const [url, key, ...batches] = process.argv.slice(2);
  const client = new FeedClient(url, key, batches, {
    changed(kind, row) {
      if (kind === "batches") console.log("batch", row.id, row.state, row.outcome ?? "");
      if (kind === "uploads") console.log("upload", row.path, row.state, row.received);
      const ends = [...client.rows.batches.values()].filter((batch) => batch.state === "completed");
      if (ends.length === batches.length) client.close();
    },
    ended(code) {
      if (!client.closed) console.error(`the feed ended with ${code}`);
      process.exitCode = client.closed ? 0 : 1;
    },
  });
}
