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

// A clip: its moving skeleton, with the frame's place, gate and text beneath. It never moves unasked.
const players = [];
for (const clip of document.querySelectorAll(".clip:has(.clip-data)")) {
  const facts = JSON.parse(clip.querySelector(".clip-data").textContent);
  const [button, slider, place] = ["button", "input", ".place"].map(part => clip.querySelector(part));
  const now = [...clip.querySelectorAll(".now")], timelines = [...clip.querySelectorAll(".timeline")];
  const { frames, lanes } = facts;
  clip.querySelectorAll(".live").forEach(part => { part.hidden = false; });
  const named = frame => `frame ${frames[frame]}`;
  const seek = frame => { player.pause(); player.seek(frame); };
  const said = [...clip.querySelectorAll(".words")].map((part, i) => showWords(part, facts.words[i], seek, named));
  const player = new SkeletonPlayer(clip.querySelector("canvas"), facts, {
    onState: playing => { button.textContent = playing ? "Pause" : "Play"; },
    onFrame: frame => {
      slider.value = frame;
      slider.setAttribute("aria-valuetext", named(frame));
      place.textContent = `${named(frame)} of ${frames.at(-1)}`;
      said.forEach(show => show(frame));
      for (const timeline of timelines) {
        timeline.style.setProperty("--at", `calc(${100 * (frame + 0.5) / frames.length}% - 1px)`);
      }
      lanes.forEach((lane, i) => {
        const text = lane.rows[frame] < 0 ? null : lane.texts[lane.rows[frame]];
        const kind = text === null ? "no text" : lane.own[frame] ? "its own text" : "the nearest text";
        now[i].replaceChildren(Object.assign(document.createElement("b"), {
          textContent: `gate ${lane.gate[frame].toFixed(3)}, ${kind}${text === null ? "" : ": "}`,
        }), text ?? "");
      });
    },
  });
  button.addEventListener("click", () => player.playing ? player.pause() : player.play());
  slider.addEventListener("input", () => seek(Number(slider.value)));
  for (const timeline of timelines) {
    timeline.addEventListener("click", event => {
      const box = timeline.getBoundingClientRect();
      seek(Math.floor((event.clientX - box.left) / box.width * frames.length));
    });
  }
  players.push(player);
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => players.forEach(player => player.draw()));

// On paper nothing can be unfolded.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(part => { part.open = true; }));
