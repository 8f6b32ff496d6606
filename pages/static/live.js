// Live on the page of tools/demo_page.py: posts the camera's pictures one at a time, and shows the sentences that come.

const LONGEST_SIDE = 640; // of a posted picture, in pixels
const QUALITY = 0.85;
const $ = (id) => document.getElementById(id);

export class Live {
  // `words()` are those of the page's language, `address()` is that of the events.
  constructor(words, address) {
    Object.assign(this, { words, address, say: (t) => t.live_hint, camera: null, events: null });
    $("live_button").onclick = () => (this.events ? this.stop() : this.start());
  }

  // What stands against it, as of the server ("" for nothing), is said in place of the button.
  offer(fault) {
    const able = navigator.mediaDevices && "requestVideoFrameCallback" in HTMLVideoElement.prototype;
    if (fault || !able) return this.status((t) => fault || t.insecure);
    $("live_button").hidden = false;
  }

  translate() {
    $("live_button").textContent = this.events ? this.words().live_stop : this.words().live_start;
    $("live_status").textContent = this.say(this.words());
  }

  status(say, kind = "") {
    this.say = say;
    $("live_status").className = `hint ${kind}`;
    this.translate();
  }

  async start() {
    $("live_button").disabled = true;
    this.status((t) => t.live_starting);
    try {
      this.camera = await navigator.mediaDevices.getUserMedia({ video: { width: 640, height: 480 } });
      $("view").srcObject = this.camera;
      $("view").hidden = false;
      await $("view").play();
    } catch (error) {
      return this.end((t) => t.no_camera(error.message), "fault");
    }
    $("live_button").disabled = false;
    $("live_sentences").replaceChildren();
    Object.assign(this, { session: "", first: null, sent: 0, posting: null });
    this.events = new EventSource(this.address());
    this.events.onmessage = ({ data }) => this.take(JSON.parse(data));
    this.events.onerror = () => this.end((t) => t.unreachable, "fault");
    this.translate();
  }

  take(message) {
    if (message.error) return this.end(() => message.error, "fault");
    if (message.end) return this.end(this.say);
    if ("frames" in message) return this.status((t) => t.live_counts(message.frames, message.dropped));
    if ("text" in message) return this.show(message);
    this.session = message.session;
    this.awaited = $("view").requestVideoFrameCallback((now, frame) => this.watch(now, frame));
  }

  show({ text, at, draft }) {
    const item = $("live_sentences").querySelector(".draft") ?? document.createElement("li");
    item.className = draft ? "draft" : "";
    item.textContent = `${Math.floor(at / 60)}:${(at % 60).toFixed(1).padStart(4, "0")} ${text}${draft ? " …" : ""}`;
    $("live_sentences").prepend(item);
  }

  // A picture that comes while one is on its way is dropped: the server is late.
  watch(now, { captureTime = now, presentedFrames, width, height }) {
    if (!this.camera) return;
    this.awaited = $("view").requestVideoFrameCallback((...next) => this.watch(...next));
    if (this.posting) return;
    this.first ??= { captureTime, presentedFrames };
    const time = (captureTime - this.first.captureTime) / 1000; // seconds
    const dropped = presentedFrames - this.first.presentedFrames - this.sent++;
    const scale = Math.min(1, LONGEST_SIDE / Math.max(width, height));
    const canvas = new OffscreenCanvas(Math.round(width * scale), Math.round(height * scale));
    canvas.getContext("2d").drawImage($("view"), 0, 0, canvas.width, canvas.height);
    this.posting = this.post({ time, dropped }, canvas).finally(() => (this.posting = null));
  }

  async post(facts, canvas) {
    const { session } = this;
    const picture = canvas ? await canvas.convertToBlob({ type: "image/jpeg", quality: QUALITY }) : "";
    this.facts = facts;
    try {
      const body = new Blob([JSON.stringify({ session, ...facts }), "\n", picture]);
      const answer = await fetch("/live", { method: "POST", body });
      const { error } = await answer.json();
      if (error && this.session === session) this.end(() => error, "fault");
    } catch {
      if (this.session === session) this.end((t) => t.unreachable, "fault");
    }
  }

  // The camera is released at once; the last sentence may still come.
  async stop() {
    if (!this.session || !this.camera) return this.end(this.say);
    this.release();
    await this.posting;
    if (this.session) await this.post(this.facts ?? { time: 0, dropped: 0 });
  }

  release() {
    if (this.awaited) $("view").cancelVideoFrameCallback(this.awaited); // or it would post to the next session
    for (const track of this.camera?.getTracks() ?? []) track.stop();
    this.camera = $("view").srcObject = null;
    $("view").hidden = true;
  }

  end(say, kind) {
    this.release();
    this.events?.close();
    this.events = null;
    this.session = "";
    $("live_button").disabled = false;
    this.status(say, kind);
  }
}
