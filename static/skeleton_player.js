// Draws a clip's skeleton frame by frame, and a line of values under it. Used by every page that shows poses.
//
// A clip is what `pictures.player_data` makes: points[frame][joint] is [x, y] in thousandths of the picture, or null for
// a joint that was not found; lines are [{joints, colour, width}]; ratio is the picture's width / its height.

export class SkeletonPlayer {
  // onFrame(frame) is called whenever another frame is shown, onState(playing) when it starts or stops.
  constructor(canvas, clip, { fps = 25, onFrame = () => {}, onState = () => {} } = {}) {
    Object.assign(this, { canvas, clip, fps, onFrame, onState, frame: 0, playing: false });
    this.canvas.style.setProperty("--ratio", clip.ratio); // for the page's style sheet
    this.observer = new ResizeObserver(() => this.draw());
    this.observer.observe(canvas);
    this.seek(0);
  }

  get length() {
    return this.clip.points.length;
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
    const points = this.clip.points[this.frame];
    context.lineCap = context.lineJoin = "round";
    for (const { joints, colour, width: thickness } of this.clip.lines) {
      context.strokeStyle = colour;
      context.lineWidth = Math.max(1, (thickness * height) / 1000);
      context.beginPath();
      for (let i = 1; i < joints.length; i++) {
        const [from, to] = [points[joints[i - 1]], points[joints[i]]];
        if (!from || !to) continue;
        context.moveTo((from[0] * width) / 1000, (from[1] * height) / 1000);
        context.lineTo((to[0] * width) / 1000, (to[1] * height) / 1000);
      }
      context.stroke();
    }
  }
}

// A heat line: values from 0 to 1, one per frame, white to dark; marks stand under the frames where they are 1.
export function drawStrip(canvas, values, marks, current) {
  const { context, width, height } = cleared(canvas);
  const step = width / values.length;
  const bar = height * 0.8;
  values.forEach((value, i) => {
    context.fillStyle = heat(value);
    context.fillRect(i * step, 0, Math.ceil(step), bar);
    if (marks[i]) {
      context.fillStyle = "#1b6e53";
      context.fillRect(i * step, height * 0.86, Math.ceil(step), height * 0.14);
    }
  });
  context.strokeStyle = "#b3001b";
  context.lineWidth = 2;
  context.strokeRect(current * step - 1, 1, Math.max(step, 3) + 2, bar - 2);
}

// The colour of a value from 0 to 1.
export function heat(value) {
  const share = Math.max(0, Math.min(1, value));
  const [light, dark] = [[253, 246, 227], [62, 31, 98]];
  return `rgb(${light.map((from, i) => Math.round(from + (dark[i] - from) * share)).join(",")})`;
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
