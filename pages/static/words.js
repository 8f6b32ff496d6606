// Shows which frames led to which word: a word is lit while the frames that counted most for it are shown, and a chosen
// word has the shares of all frames in a strip. Used by every page that has sentences and skeletons; their style sheets
// name the colours --heat and --cold.

const STYLE = new CSSStyleSheet();
STYLE.replaceSync(`
  .words p { margin: .2rem 0 .4rem; max-width: none; font-size: 1.15rem; line-height: 1.8; overflow-wrap: anywhere; }
  .words button { font: inherit; color: inherit; background: none; border: 0; border-bottom: 2px solid transparent; margin: 0;
    padding: 0 .1em; border-radius: .2em .2em 0 0; white-space: normal; cursor: pointer; }
  .words button[aria-pressed=true] { border-color: var(--heat); }
  .words button.lit { background: color-mix(in srgb, var(--heat) 28%, transparent); }
  .words div { position: relative; height: 20px; border-radius: 3px; overflow: hidden; cursor: pointer; }
  .words div::after { content: ""; position: absolute; inset: 0 auto 0 calc(var(--at) - 1px); width: 2px; background: var(--ink);
    outline: 1px solid var(--cold); }
`);
document.adoptedStyleSheets.push(STYLE);

// A field per frame, side by side, as a background; and the colour of a share from 0 to 1.
export const strip = (colours) => `linear-gradient(90deg, ${colours.map((colour, i) =>
  `${colour} ${(100 * i) / colours.length}% ${(100 * (i + 1)) / colours.length}%`).join()})`;
export const shade = (share) => `color-mix(in srgb, var(--heat) ${100 * share}%, var(--cold))`;

// Shows a clip's gate, from the palest colour at `low` to the darkest at `high`, and marks below the frames that have a
// text of their own; the text of a frame is seen when the pointer rests there.
export function showGate(place, { gate, texts, own }, low, high) {
  const shades = gate.map((value) => shade(high > low ? (value - low) / (high - low) : 0.5));
  const marks = own.map((is) => (is ? "var(--mark)" : "transparent"));
  place.style.background = `${strip(marks)} bottom / 100% 14% no-repeat, ${strip(shades)} top / 100% 80% no-repeat`;
  place.onpointermove = ({ offsetX }) => {
    place.title = texts[Math.min(texts.length - 1, Math.floor((offsetX / place.clientWidth) * texts.length))] ?? "";
  };
}

const LIT = 128; // of 255, a word's largest share: from half of it a frame lights the word

// Fills an element with what `pages.clip_view.words_data` makes; seek(frame) goes to a frame, named(frame) says which it is.
// Returns a function to call whenever another frame, or the same in another language, is shown.
export function showWords(place, { text, words, shares }, seek, named) {
  const { length } = shares[0];
  const strongest = shares.map((row) => row.indexOf(255));
  const [line, bar] = ["p", "div"].map((kind) => document.createElement(kind));
  let chosen, end = 0;
  const buttons = words.map((word, i) => {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: word });
    button.onclick = () => { choose(i); seek(strongest[i]); };
    const begin = Math.max(end, text.indexOf(word, end));
    line.append(text.slice(end, begin), button);
    end = begin + word.length;
    return button;
  });
  bar.setAttribute("role", "img");
  bar.onclick = (event) => seek(Math.floor((event.offsetX / bar.clientWidth) * length));
  const choose = (word) => {
    chosen = word;
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", i === word));
    bar.style.background = strip(shares[word].map((level) => shade(0.08 + (0.92 * level) / 255)));
  };
  choose(0);
  place.replaceChildren(line, bar);
  return (frame) => {
    buttons.forEach((button, i) => {
      button.classList.toggle("lit", shares[i][frame] >= LIT);
      button.title = named(strongest[i]);
    });
    bar.setAttribute("aria-label", `${words[chosen]}: ${named(strongest[chosen])}`);
    bar.style.setProperty("--at", `${(100 * (frame + 0.5)) / length}%`);
  };
}
