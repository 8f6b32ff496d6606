// Draws a clip's skeleton frame by frame. Used by every page that shows poses.
//
// A clip is what `pose.drawing.player_data` makes: points are 16-bit x and y of each joint, frame by frame, from 1 to FULL, or
// 0 for a joint that was not found; lines are [joints, kind, width], and the page's style sheet has a colour --kind for
// each kind; ratio is the picture's width / its height.

const FULL = 65535;

export class SkeletonPlayer {
  // onFrame(frame) is called whenever another frame is shown, onState(playing) when it starts or stops.
  constructor(canvas, clip, { fps = 25, onFrame = () => {}, onState = () => {} } = {}) {
    Object.assign(this, { canvas, clip, fps, onFrame, onState, frame: 0, playing: false });
    this.points = decode(clip.points);
    this.length = this.points.length / 2 / clip.joints;
    this.canvas.style.setProperty("--ratio", clip.ratio); // for the page's style sheet
    this.observer = new ResizeObserver(() => this.draw());
    this.observer.observe(canvas);
    this.seek(0);
  }

  seek(frame) {
    this.frame = Math.max(0, Math.min(this.length - 1, frame));
    this.draw();
    this.onFrame(this.frame);
  }

  play() {
    if (this.playing) return;
    this.playing = true;
    this.onState(true);
    if (this.frame === this.length - 1) this.seek(0);
    let shown = performance.now();
    const step = (now) => {
      if (!this.playing) return;
      const due = Math.floor(((now - shown) * this.fps) / 1000);
      if (due > 0) {
        shown += (due * 1000) / this.fps;
        this.seek(this.frame + due);
        if (this.frame === this.length - 1) return this.pause();
      }
      requestAnimationFrame(step);
    };
    requestAnimationFrame(step);
  }

  pause() {
    if (!this.playing) return;
    this.playing = false;
    this.onState(false);
  }

  close() {
    this.pause();
    this.observer.disconnect();
  }

  draw() {
    const { context, width, height } = cleared(this.canvas);
    const style = getComputedStyle(this.canvas);
    const first = this.frame * this.clip.joints;
    context.lineCap = context.lineJoin = "round";
    for (const [joints, kind, thickness] of this.clip.lines) {
      context.strokeStyle = style.getPropertyValue(`--${kind}`);
      context.lineWidth = Math.max(1, (thickness * height) / 1000);
      context.beginPath();
      let down = false;
      for (const joint of joints) {
        const [x, y] = this.points.subarray(2 * (first + joint));
        if (x) context[down ? "lineTo" : "moveTo"]((x / FULL) * width, (y / FULL) * height);
        down = x > 0;
      }
      context.stroke();
    }
  }
}

function decode(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  return new Uint16Array(bytes.buffer);
}

// An empty canvas as sharp as the screen, in units of CSS pixels.
function cleared(canvas) {
  const { clientWidth: width, clientHeight: height } = canvas;
  const scale = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  return { context, width, height };
}
