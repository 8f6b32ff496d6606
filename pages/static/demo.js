// The page of tools/demo_page.py: sends a file, shows what comes back. Everything is inserted as text, never as markup.

import { Live } from "/live.js";
import { SkeletonPlayer } from "/skeleton_player.js";
import { showGate, showWords } from "/words.js";

// Every text in English and in Chinese.
const TEXTS = {
  title: ["Sign language translation", "手语翻译"],
  other: ["中文", "English"],
  drop: [(facts) => `Drop a pose file${facts.no_videos ? "" : " or a video"} here, or choose one`,
    (facts) => `把姿态文件${facts.no_videos ? "" : "或视频"}拖到这里，或点击选择`],
  accepted: [(facts) => `${facts.suffixes.join(" ")}, up to ${facts.max_bytes / 1e6} MB`,
    (facts) => `${facts.suffixes.join(" ")}，最大 ${facts.max_bytes / 1e6} MB`],
  no_videos: ["Videos cannot be read now", "目前无法读取视频"],
  descriptions: ["Descriptions of the frames", "帧描述"],
  by_rules: ["made from the keypoints, by rules", "按规则由关键点生成"],
  from_file: ["from a JSON file", "来自 JSON 文件"],
  none: ["none", "不使用"],
  aspect: ["Video's width : height", "视频宽高比"],
  person: ["Person", "人物序号"],
  ready: ["Waiting for a file.", "等待文件。"],
  nothing: ["Here the skeleton will play, with the descriptions of its frames and the gate beneath.", "这里将播放骨架，下方显示帧描述和门控。"],
  working: [(name) => `Translating ${name} …`, (name) => `正在翻译 ${name} …`],
  done: [(name, seconds) => `${name}: translated in ${seconds} s.`, (name, seconds) => `${name}：翻译用时 ${seconds} 秒。`],
  sampled: [(shown, all) => ` Of its ${all} frames the model looks at ${shown}.`,
    (shown, all) => `共 ${all} 帧，模型看了其中 ${shown} 帧。`],
  too_large: [(name, size, limit) => `${name} has ${size} MB; the limit is ${limit} MB.`,
    (name, size, limit) => `${name} 有 ${size} MB，上限为 ${limit} MB。`],
  unreachable: ["The server does not answer. Is tools/demo_page.py still running?", "服务器没有响应。tools/demo_page.py 还在运行吗？"],
  choose_texts: ["Choose a JSON file of descriptions.", "请选择描述的 JSON 文件。"],
  live: ["Live", "实时翻译"],
  live_start: ["Start the camera", "打开摄像头"],
  live_stop: ["Stop", "停止"],
  live_hint: ["The camera's pictures go to this server alone, and are not kept.", "摄像头画面只发送到本机服务器，不会保存。"],
  live_starting: ["Starting …", "正在启动 …"],
  live_counts: [(frames, dropped) => `${frames} pictures looked at, ${dropped} dropped.`,
    (frames, dropped) => `已处理 ${frames} 帧，丢弃 ${dropped} 帧。`],
  no_camera: [(reason) => `No camera: ${reason}.`, (reason) => `无法使用摄像头：${reason}。`],
  insecure: ["The camera needs https or localhost, and a browser of 2024 or later.", "摄像头需要 https 或 localhost，以及 2024 年以后的浏览器。"],
  with: ["With descriptions", "使用描述"],
  without: ["Without descriptions", "不使用描述"],
  sentence: ["Translation", "译文"],
  others: ["Next best:", "其他候选："],
  empty: ["(an empty sentence)", "（空句子）"],
  score: ["The number is the mean log-probability of the sentence's tokens: closer to 0 is surer.",
    "数字是句中各词元的平均对数概率：越接近 0 越有把握。"],
  left: ["signer's left hand", "手语者的左手"],
  right: ["signer's right hand", "手语者的右手"],
  play: ["Play", "播放"],
  pause: ["Pause", "暂停"],
  frame: [(number, all) => `frame ${number} of ${all}`, (number, all) => `第 ${number} / ${all} 帧`],
  words: ["Words", "词语"],
  over: ["A word lights up over the frames that led to it. Choose one to go there; the line shows how much each frame counted.",
    "播放到促成某个词的帧时，该词会亮起。点选一个词可跳到最重要的帧；色条表示各帧的作用大小。"],
  gate: ["Gate", "门控"],
  strip: ["Dark: the model adds much of the text. Green marks: frames with a description of their own; the others take the nearest.",
    "颜色越深，模型加入的文本越多。绿色标记：该帧有自己的描述；其余帧取最近的描述。"],
  no_text: ["no description", "没有描述"],
  nearest: ["from the nearest described frame: ", "取自最近的有描述的帧："],
  about: [(facts) => `${facts.checkpoint}, ${facts.descriptions ? "poses and descriptions" : "poses"} → ${facts.language}`,
    (facts) => `${facts.checkpoint}，${facts.descriptions ? "姿态与描述" : "姿态"} → ${facts.language}`],
};
const WORDS = Object.fromEntries(["en", "zh"].map((name, i) =>
  [name, Object.fromEntries(Object.entries(TEXTS).map(([key, texts]) => [key, texts[i]]))]));

const $ = (id) => document.getElementById(id);
let language = navigator.language.startsWith("zh") ? "zh" : "en";
let facts = null;
let file = null;
let clip = null;
let player = null;
let lightWords = null; // lights those of a frame
let say = (words) => words.ready; // what the status line says, in any language
const live = new Live(t, () => (textsFrom() === "rules" ? "/live?rules" : "/live"));
let asked = 0; // number of the latest question: answers to earlier ones are dropped

function t() {
  return WORDS[language];
}

function translatePage() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  document.title = t().title;
  for (const element of document.querySelectorAll("[data-t]")) element.textContent = t()[element.dataset.t];
  $("language").textContent = t().other;
  if (facts) {
    $("model").textContent = t().about(facts);
    $("accepted").textContent = t().accepted(facts);
    $("what").textContent = t().drop(facts);
  }
  $("place").setAttribute("aria-label", t().frame("", "").trim());
  $("status").textContent = say(t());
  live.translate();
  if (clip) showSentences();
  if (player) showState(player.playing), showFrame(player.frame);
}

function status(words, kind = "") {
  say = words;
  $("status").className = kind;
  $("status").textContent = words(t());
}

function textsFrom() {
  return facts.descriptions ? document.querySelector("[name=texts]:checked").value : "none";
}

async function ask() {
  if (!file || !$("person").reportValidity()) return;
  const number = ++asked;
  const kind = textsFrom();
  const texts = kind === "file" ? $("texts").files[0] : null;
  if (kind === "file" && !texts) return status((words) => words.choose_texts, "fault");
  const { name } = file;
  const question = { name, texts: kind, aspect: Number($("aspect").value), person: Number($("person").value) };
  if (texts) question.content = await texts.text();
  const body = new Blob([JSON.stringify(question), "\n", file]);
  if (body.size > facts.max_bytes) {
    const [size, limit] = [(body.size / 1e6).toFixed(1), facts.max_bytes / 1e6];
    return status((words) => words.too_large(name, size, limit), "fault");
  }
  status((words) => words.working(name), "working");
  const begun = performance.now();
  let answer;
  try {
    answer = await (await fetch("/translate", { method: "POST", body })).json();
  } catch {
    if (number === asked) status((words) => words.unreachable, "fault");
    return;
  }
  if (number !== asked) return;
  if (answer.error) return status(() => answer.error, "fault");
  const seconds = ((performance.now() - begun) / 1000).toFixed(1);
  const [shown, all] = [answer.frames.length, answer.recorded];
  status((words) => words.done(name, seconds) + (shown < all ? words.sampled(shown, all) : ""));
  show(answer);
}

function show(answer) {
  clip = answer;
  $("sentences").hidden = $("clip").hidden = false;
  $("nothing").hidden = true;
  $("gates").hidden = !clip.gate;
  $("over").hidden = !clip.words;
  if (clip.gate) showGate($("strip"), clip, 0, 1);
  showSentences();
  const named = (frame) => t().frame(clip.frames[frame], clip.frames.at(-1));
  if (clip.words) lightWords = showWords($("words"), clip.words, seek, named);
  if (player) player.close();
  $("place").max = clip.frames.length - 1;
  if (clip.fps) $("fps").value = closestRate(clip.fps);
  player = new SkeletonPlayer($("skeleton"), clip, { fps: Number($("fps").value), onFrame: showFrame, onState: showState });
  showState(false);
  if (!window.matchMedia("(prefers-reduced-motion: reduce)").matches) player.play();
}

// Of the rates that can be chosen, the one nearest to a video's.
function closestRate(fps) {
  const rates = [...$("fps").options].map((option) => Number(option.value));
  return String(rates.reduce((best, rate) => (Math.abs(rate - fps) < Math.abs(best - fps) ? rate : best)));
}

function showSentences() {
  for (const kind of ["with", "without"]) {
    const candidates = clip[kind];
    $(kind).hidden = !candidates;
    if (!candidates) continue;
    $(kind).querySelector("h2").textContent = facts.descriptions ? t()[kind] : t().sentence;
    const [best, ...others] = candidates;
    $(kind).querySelector(".best").replaceChildren(...sentence(best));
    $(kind).querySelector("ol").replaceChildren(...others.map((other) => {
      const item = document.createElement("li");
      item.append(...sentence(other));
      return item;
    }));
  }
}

function sentence({ text, score }) {
  const number = document.createElement("span");
  number.className = "score";
  number.textContent = score.toFixed(3).replace("-", "−");
  return [`${text || t().empty} `, number];
}

function showState(playing) {
  $("play").textContent = playing ? t().pause : t().play;
}

function seek(frame) {
  player.pause();
  player.seek(frame);
}

function showFrame(frame) {
  $("place").value = frame;
  $("number").textContent = t().frame(clip.frames[frame], clip.frames.at(-1));
  $("skeleton").setAttribute("aria-label", $("number").textContent);
  if (clip.words) lightWords(frame);
  if (!clip.gate) return;
  $("gate").textContent = clip.gate[frame].toFixed(3);
  $("strip").style.setProperty("--at", `${(100 * (frame + 0.5)) / clip.gate.length}%`);
  $("strip").setAttribute("aria-label", `${t().gate} ${$("gate").textContent}`);
  const text = clip.texts[frame];
  const note = document.createElement("span");
  note.className = "filled";
  note.textContent = text === null ? t().no_text : clip.own[frame] ? "" : t().nearest;
  $("text").replaceChildren(note, text ?? "");
}

function takeFile(files) {
  if (!files.length) return;
  [file] = files;
  ask();
}

$("language").onclick = () => {
  language = language === "zh" ? "en" : "zh";
  translatePage();
};
$("file").onchange = () => takeFile($("file").files);
for (const [event, over] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
  document.addEventListener(event, (dropped) => {
    dropped.preventDefault(); // or the browser would open the file
    $("drop").classList.toggle("over", over);
    if (event === "drop") takeFile(dropped.dataTransfer.files);
  });
}
for (const radio of document.querySelectorAll("[name=texts]")) {
  radio.onchange = () => {
    $("texts").hidden = radio.value !== "file";
    ask();
  };
}
for (const id of ["texts", "aspect", "person"]) $(id).onchange = ask;
$("play").onclick = () => (player.playing ? player.pause() : player.play());
$("fps").onchange = () => { if (player) player.fps = Number($("fps").value); };
$("place").oninput = () => seek(Number($("place").value));
$("strip").onclick = (event) => seek(Math.floor((event.offsetX / $("strip").clientWidth) * player.length));

translatePage();
try {
  facts = await (await fetch("/facts")).json();
  $("file").accept = facts.suffixes.join(",");
  $("descriptions").hidden = !facts.descriptions;
  $("no_videos").hidden = !facts.no_videos;
  $("no_videos").querySelector("p").textContent = facts.no_videos;
  live.offer(facts.no_live);
  translatePage();
} catch {
  status((words) => words.unreachable, "fault");
}
