// A clip: its moving skeleton, with the frame's place, gate and text beneath. It never moves unasked.
const players = [];
for (const clip of document.querySelectorAll(".clip:has(.clip-data)")) {
  const facts = JSON.parse(clip.querySelector(".clip-data").textContent);
  const [button, slider, place] = ["button", "input", ".place"].map(part => clip.querySelector(part));
  const now = [...clip.querySelectorAll(".now")], timelines = [...clip.querySelectorAll(".timeline")];
  const { frames, lanes } = facts;
  clip.querySelectorAll(".live").forEach(part => { part.hidden = false; });
  clip.querySelectorAll(".strip").forEach((part, i) => {
    showGate(part, lanes[i], Math.min(...lanes[i].gate), Math.max(...lanes[i].gate));
  });
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
        const text = lane.texts[frame];
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
