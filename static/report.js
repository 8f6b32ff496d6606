"use strict";

// A pointer, a finger or the arrow keys on a chart: a line at the nearest x, and the values there in words.
for (const figure of document.querySelectorAll(".chart")) {
  const svg = figure.querySelector("svg"), cursor = figure.querySelector(".cursor"), read = figure.querySelector("output");
  const { x: xName, box: [x0, x1, y0, y1, low, high], lines } = JSON.parse(figure.querySelector(".chart-data").textContent);
  const places = [...new Set(lines.flatMap(line => line.points.map(point => point[0])))].sort((a, b) => a - b);
  const resting = read.textContent;
  let place = -1;
  const show = index => {
    place = Math.max(0, Math.min(places.length - 1, index));
    const x = places[place];
    const at = x0 + (x1 - x0) * (high > low ? (x - low) / (high - low) : 0.5);
    cursor.setAttribute("d", `M${at} ${y0}V${y1}`);
    const values = lines.flatMap(line => {
      const point = line.points.find(point => point[0] === x);
      return point && point[1] !== null ? [`${line.name} ${Number(point[1].toPrecision(4))}`] : [];
    });
    read.textContent = `${xName} ${x}: ${values.join(" · ")}`;
  };
  const leave = () => { place = -1; cursor.setAttribute("d", ""); read.textContent = resting; };
  svg.addEventListener("pointermove", event => {
    const frame = svg.getBoundingClientRect();
    const x = (event.clientX - frame.left) / frame.width * svg.viewBox.baseVal.width;
    const wanted = low + (x - x0) / (x1 - x0) * (high - low);
    let nearest = 0;
    places.forEach((value, i) => { if (Math.abs(value - wanted) < Math.abs(places[nearest] - wanted)) nearest = i; });
    show(nearest);
  });
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("blur", leave);
  svg.addEventListener("keydown", event => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step) { event.preventDefault(); show(place < 0 && step < 0 ? places.length - 1 : place + step); }
  });
}

// A clip: its points as a moving skeleton, with the frame's place, gate and text beneath. It never moves unasked.
const FPS = 25;

function decode(base64) {
  const bytes = Uint8Array.from(atob(base64), letter => letter.charCodeAt(0));
  return new Uint16Array(bytes.buffer);
}

class Player {
  constructor(clip) {
    this.facts = JSON.parse(clip.querySelector(".clip-data").textContent);
    this.points = decode(this.facts.points);  // frame by frame x, y of each joint; 0 where it was not found
    this.canvas = clip.querySelector("canvas");
    this.button = clip.querySelector("button");
    this.slider = clip.querySelector("input");
    this.place = clip.querySelector(".place");
    this.now = [...clip.querySelectorAll(".now")];
    this.timelines = [...clip.querySelectorAll(".timeline")];
    this.frame = 0;
    this.started = null;
    const ratio = Math.min(2, window.devicePixelRatio || 1);
    this.canvas.width = 300 * ratio;
    this.canvas.height = Math.round(300 * ratio * this.facts.height / this.facts.width);
    this.button.addEventListener("click", () => this.started === null ? this.play() : this.stop());
    this.slider.addEventListener("input", () => { this.stop(); this.show(Number(this.slider.value)); });
    for (const timeline of this.timelines) {
      timeline.addEventListener("click", event => {
        const frame = timeline.getBoundingClientRect();
        this.stop();
        this.show(Math.floor((event.clientX - frame.left) / frame.width * this.facts.frames.length));
      });
    }
    clip.querySelectorAll("[hidden].live").forEach(part => { part.hidden = false; });
    this.show(0);
  }

  play() {
    const first = this.frame >= this.facts.frames.length - 1 ? 0 : this.frame;
    this.started = performance.now() - 1000 * first / FPS;
    this.button.textContent = "Pause";
    const tick = time => {
      if (this.started === null) return;
      const frame = Math.floor((time - this.started) * FPS / 1000);
      if (frame >= this.facts.frames.length) { this.stop(); return; }
      this.show(Math.max(0, frame));
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  }

  stop() {
    this.started = null;
    this.button.textContent = "Play";
  }

  show(frame) {
    const { frames, lanes } = this.facts;
    this.frame = Math.max(0, Math.min(frames.length - 1, frame));
    this.slider.value = this.frame;
    this.slider.setAttribute("aria-valuetext", `frame ${frames[this.frame]}`);
    this.place.textContent = `frame ${frames[this.frame]} of ${frames[frames.length - 1]}`;
    for (const timeline of this.timelines) {
      timeline.style.setProperty("--at", `calc(${100 * (this.frame + 0.5) / frames.length}% - 1px)`);
    }
    lanes.forEach((lane, i) => {
      const text = lane.rows[this.frame] < 0 ? null : lane.texts[lane.rows[this.frame]];
      const kind = text === null ? "no text" : lane.own[this.frame] ? "its own text" : "the nearest text";
      this.now[i].replaceChildren(Object.assign(document.createElement("b"), {
        textContent: `gate ${lane.gate[this.frame].toFixed(3)}, ${kind}${text === null ? "" : ": "}`,
      }), text === null ? "" : text);
    });
    this.draw();
  }

  draw() {
    const context = this.canvas.getContext("2d"), { width, height } = this.canvas, joints = this.facts.joints;
    const style = getComputedStyle(this.canvas);
    context.clearRect(0, 0, width, height);
    context.lineCap = context.lineJoin = "round";
    for (const [path, kind, thickness] of this.facts.lines) {
      context.strokeStyle = style.getPropertyValue(`--${kind}`);
      context.lineWidth = Math.max(1, thickness * height / 1000);
      context.beginPath();
      let down = false;
      for (const joint of path) {
        const i = 2 * (this.frame * joints + joint), x = this.points[i], y = this.points[i + 1];
        if (x || y) context[down ? "lineTo" : "moveTo"](x / 65535 * width, y / 65535 * height);
        down = Boolean(x || y);
      }
      context.stroke();
    }
  }
}

const players = [...document.querySelectorAll(".clip")].filter(clip => clip.querySelector(".clip-data")).map(clip => new Player(clip));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => players.forEach(player => player.draw()));

// On paper nothing can be unfolded.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(part => { part.open = true; }));
