// The websocket: connects, follows, resumes after a loss, acknowledges, and says how it stands. Knows no page.

const PROTOCOL = "md1.json";
const ACKNOWLEDGE_EVERY = 10;
const WINDOW = 60;
const SIGNED_OUT = 4401;
const TOO_MANY = 4029;

export class Feed {
  /** `on` holds handlers by frame name, and `state(name, detail)` for the connection itself. */
  constructor(path, on) {
    this.path = path;
    this.on = on;
    this.wanted = new Map();
    this.epoch = null;
    this.q = 0;
    this.number = 0;
    this.failures = 0;
    this.offset = 0;
    this.roundTrip = 0;
    this.timer = 0;
    setInterval(() => this.#watch(), 1000);
    addEventListener("online", () => this.retry());
    addEventListener("offline", () => this.#abandon("this device is offline"));
    document.addEventListener("visibilitychange", () => document.visibilityState === "visible" && this.retry());
    this.#connect();
  }

  /** The server's clock, in ms. */
  now() {
    return Date.now() + this.offset;
  }

  /** Follow a channel with these symbols; another call for the same channel replaces it. */
  follow(channel, symbols) {
    const before = this.wanted.get(channel);
    this.wanted.set(channel, symbols);
    if (!this.isOpen) return;
    const gone = (before ?? []).filter((symbol) => !symbols.includes(symbol));
    if (gone.length) this.#say({ op: "unsub", ch: channel, sym: gone });
    this.#say({ op: "sub", ch: channel, sym: symbols });
  }

  /** Stop following a channel. */
  drop(channel) {
    if (this.wanted.delete(channel) && this.isOpen) this.#say({ op: "unsub", ch: channel });
  }

  /** Connect now instead of when the back-off ends. */
  retry() {
    if (this.socket?.readyState <= WebSocket.OPEN || this.isSignedOut) return;
    clearTimeout(this.timer);
    this.#connect();
  }

  #connect() {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    this.on.state("connecting", null);
    const socket = new WebSocket(`${scheme}://${location.host}${this.path}`, [PROTOCOL]);
    this.socket = socket;
    this.heard = Date.now();
    socket.onmessage = (message) => this.#read(JSON.parse(message.data));
    socket.onclose = (event) => socket === this.socket && this.#lost(event);
  }

  #read(frame) {
    this.heard = Date.now();
    if (frame.q !== undefined && frame.t !== "gap") this.q = frame.q;
    if (frame.t === "welcome") this.#welcome(frame);
    else if (frame.t === "hb") this.#heartbeat(frame);
    else if (frame.t === "data") this.#acknowledge(frame);
    this.on[frame.t]?.(frame);
  }

  #welcome(frame) {
    const since = this.epoch === frame.e ? { e: this.epoch, q: this.q } : null;
    this.epoch = frame.e;
    this.beat = frame.hb * 1000;
    this.offset = frame.now / 1e6 - Date.now();
    this.failures = 0;
    this.isOpen = true;
    this.unacknowledged = 0;
    this.#say({ op: "set", ack: WINDOW });
    for (const [channel, symbols] of this.wanted) this.#say({ op: "sub", ch: channel, sym: symbols, ...(since && { since }) });
    this.on.state("open", null);
  }

  #heartbeat(frame) {
    if (frame.id === undefined || frame.id !== this.pinged) return;
    this.roundTrip = performance.now() - this.pingedAt;
    this.offset = frame.now / 1e6 + this.roundTrip / 2 - Date.now();
  }

  #acknowledge(frame) {
    this.frame = frame.f;
    if (++this.unacknowledged >= ACKNOWLEDGE_EVERY) this.#acknowledgeNow();
  }

  #acknowledgeNow() {
    // Twenty frames a second and channel must not become more messages than the server allows.
    const now = performance.now();
    if (now - (this.acknowledgedAt ?? 0) < 400) return;
    this.acknowledgedAt = now;
    this.unacknowledged = 0;
    this.socket.send(JSON.stringify({ op: "ack", n: this.frame }));
  }

  #say(message) {
    this.number += 1;
    this.socket.send(JSON.stringify({ id: this.number, ...message }));
    return this.number;
  }

  #watch() {
    if (!this.isOpen) return;
    if (Date.now() - this.heard > 2.5 * this.beat) return this.#abandon("the server fell silent");
    if (this.unacknowledged) this.#acknowledgeNow();
    if (performance.now() - (this.pingedAt ?? -Infinity) > this.beat) {
      this.pingedAt = performance.now();
      this.pinged = this.#say({ op: "ping" });
    }
  }

  /** Give a connection up without waiting for its close: on a dead network that takes a minute. */
  #abandon(reason) {
    if (!this.isOpen) return;
    const socket = this.socket;
    this.socket = null;
    socket.onmessage = null;
    socket.close();
    this.#lost({ code: 1006, reason });
  }

  #lost(event) {
    this.isOpen = false;
    this.isSignedOut = event.code === SIGNED_OUT;
    if (this.isSignedOut) return this.on.state("signed-out", null);
    const longest = event.code === TOO_MANY ? 30_000 : 8_000;
    const wait = Math.min(longest, 500 * 2 ** this.failures) * (0.75 + Math.random() / 2);
    this.failures += 1;
    this.timer = setTimeout(() => this.#connect(), wait);
    this.on.state("lost", { reason: event.reason, at: Date.now() + wait });
  }
}
