// Live on the page of tools/demo_page.py: posts the camera's pictures one at a time, and asks for the sentences.

const LONGEST_SIDE = 640; // of a posted picture, in pixels
const QUALITY = 0.85;
const PAUSE = 200; // milliseconds from one answer about sentences to the next question
const $ = (id) => document.getElementById(id);

export class Live {
  // `words()` are those of the page's language, `rules()` tells whether segments are described by the rules.
  constructor(words, rules) {
    Object.assign(this, { words, rules, say: (t) => t.live_hint, camera: null, session: "" });
    $("live_button").onclick = () => (this.session ? this.stop() : this.start());
  }

  // What stands against it, as of the server ("" for nothing), is said in place of the button.
  offer(fault) {
    const able = navigator.mediaDevices && "requestVideoFrameCallback" in HTMLVideoElement.prototype;
    if (fault || !able) return this.status((t) => fault || t.insecure);
    $("live_button").hidden = false;
  }

  translate() {
    $("live_button").textContent = this.session ? this.words().live_stop : this.words().live_start;
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
    Object.assign(this, { session: crypto.randomUUID(), facts: null, first: null, sent: 0, posting: null });
    this.awaited = $("view").requestVideoFrameCallback((...frame) => this.watch(...frame));
    this.translate();
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
    const line = JSON.stringify({ session, rules: this.rules(), ...facts });
    const answer = await this.ask(session, "/live", { method: "POST", body: new Blob([line, "\n", picture]) });
    if (answer && !this.facts) this.listen(session);
    this.facts = facts;
  }

  // What the server answers; what is wrong ends the session, and is no answer.
  async ask(session, ...request) {
    let fault = (t) => t.unreachable;
    try {
      const answer = await (await fetch(...request)).json();
      if (!answer.error) return answer;
      fault = () => answer.error;
    } catch {}
    if (this.session === session) this.end(fault, "fault");
  }

  async listen(session) {
    while (this.session === session) {
      const answer = await this.ask(session, `/live?${session}`);
      if (!answer || this.session !== session) return;
      answer.sentences.forEach((sentence) => this.show(sentence));
      this.status((t) => t.live_counts(answer.frames, answer.dropped));
      if (answer.end) this.end(this.say);
      await new Promise((resolve) => setTimeout(resolve, PAUSE));
    }
  }

  show({ text, at, draft }) {
    const item = $("live_sentences").querySelector(".draft") ?? document.createElement("li");
    item.className = draft ? "draft" : "";
    item.textContent = `${Math.floor(at / 60)}:${(at % 60).toFixed(1).padStart(4, "0")} ${text}${draft ? " …" : ""}`;
    $("live_sentences").prepend(item);
  }

  // The camera is released at once; the last sentence may still come.
  async stop() {
    this.release();
    await this.posting;
    if (!this.facts) return this.end(this.say);
    if (this.session) await this.post(this.facts);
  }

  release() {
    if (this.awaited) $("view").cancelVideoFrameCallback(this.awaited); // or it would post to the next session
    for (const track of this.camera?.getTracks() ?? []) track.stop();
    this.camera = $("view").srcObject = null;
    $("view").hidden = true;
  }

  end(say, kind) {
    this.release();
    this.session = "";
    $("live_button").disabled = false;
    this.status(say, kind);
  }
}
