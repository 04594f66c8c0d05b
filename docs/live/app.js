// The page: controls, pictures, and what a step holds. All computing is in the worker.

import { curve, bars, sweep } from "./charts.js";
import { QUESTIONS } from "./questions.js";

const at = (id) => document.getElementById(id);
const QUICK = 10, STEPS = 20; // steps while rho is dragged, and of the exact run
const EARLY = 4; // the step that is opened where the slider stands at the end
const BUTTONS = [...at("diagram").querySelectorAll("button")]; // the boxes
const worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
const settings = { prompt: "", seed: 0, rho: 1, anchor: "original", direction: "", guidance: 9, when: null, step: STEPS, box: "" };
let facts = null, id = 0, frames = [], quickly = false; // whether the newest run is a quick one

// ---- what is asked for, in the address too ------------------------------------------------------

const WHEN = {
  all: () => true,
  early: (i) => i < STEPS / 3,
  middle: (i) => i >= STEPS / 3 && i < 2 * STEPS / 3,
  late: (i) => i >= 2 * STEPS / 3,
};

/** The settings of a link: "#p=a+red+circle&s=3&r=1&k=12&w=1111...". What it lacks, or what no control has, stays. */
function fromAddress() {
  const told = new URLSearchParams(location.hash.slice(1));
  const number = (key, low, high, usual) => {
    const value = Number(told.get(key)?.trim() || NaN);
    return value >= low && value <= high ? value : usual;
  };
  const choice = (key, all, usual) => (all.includes(told.get(key)) ? told.get(key) : usual);
  settings.prompt = told.get("p")?.trim() || settings.prompt;
  settings.seed = Math.round(number("s", 0, 99999, settings.seed));
  settings.rho = number("r", 0, 8, settings.rho);
  settings.guidance = number("g", 1, 20, settings.guidance);
  settings.step = Math.round(number("k", 0, STEPS, settings.step));
  settings.anchor = choice("a", ["original", "running"], settings.anchor);
  settings.direction = choice("d", ["", "random"], settings.direction);
  if (/^[01]{20}$/.test(told.get("w") ?? "")) settings.when = [...told.get("w")].map((one) => one === "1");
  settings.box = choice("b", ["", ...BUTTONS.map((button) => button.dataset.box)], settings.box);
}

function address() {
  const { prompt, seed, rho, guidance, step, anchor, direction, when, box } = settings;
  const told = { p: prompt, s: seed, r: rho, g: guidance, k: step, a: anchor, d: direction, b: box };
  told.w = when.map(Number).join("");
  return `${location.href.split("#")[0]}#${new URLSearchParams(told)}`;
}

/** The controls as the settings are. */
function show() {
  for (const name of ["prompt", "seed", "rho", "guidance", "anchor", "direction", "step"]) at(name).value = settings[name];
  at("rho-says").textContent = settings.rho;
  for (const [i, button] of [...at("strip").children].entries()) button.setAttribute("aria-pressed", settings.when[i]);
}

// ---- asking the worker --------------------------------------------------------------------------

/** Ask for both runs; quick: with few steps, while something is dragged. */
function ask(quick = false) {
  if (!facts) return;
  const steps = quick ? QUICK : STEPS;
  const when = Array.from({ length: steps }, (_, i) => settings.when[Math.floor(i * STEPS / steps)]);
  const { prompt, seed, rho, anchor, direction, guidance } = settings;
  id += 1;
  quickly = quick;
  document.body.dataset.state = quick ? "quick" : "running";
  for (const name of ["fixed", "date"]) at(name).classList.add("old");
  worker.postMessage({ kind: "run", id, settings: { prompt, seed, rho, anchor, direction, guidance, steps, when } });
  if (!quick) history.replaceState(null, "", address());
}

let due = null;
/** Change settings and sample again: quickly while dragging, exactly a moment later. */
function change(changes, dragging = false) {
  Object.assign(settings, changes);
  show();
  id += 1; // what is shown, or on its way, is no longer what is set
  document.body.dataset.state = "changed";
  clearTimeout(due);
  if (dragging) ask(true);
  due = setTimeout(ask, dragging ? 350 : 0);
}

worker.onmessage = ({ data }) => {
  if (data.id !== undefined && data.id !== id) return; // of an older question
  ({ progress, ready, light, step, done, inside: openInside, error })[data.kind]?.(data);
};
worker.onerror = (event) => error({ text: event.message || "The worker could not be started." });

function progress({ loaded, whole }) {
  at("loading").value = loaded / whole;
  const [here, all] = [loaded, whole].map((bytes) => (bytes / 1e6).toFixed(0));
  at("status").textContent = loaded < whole ? `Loading: ${here} of ${all} MB` : "Getting ready";
}

function ready(told) {
  facts = told.facts;
  at("loading").hidden = true;
  at("how").textContent = `datekit ${facts.version}, in your browser: ${told.how}. Nothing is sent anywhere.`;
  settings.guidance = facts.guidance;
  settings.prompt = facts.prompts[0];
  settings.when = Array(STEPS).fill(true);
  fromAddress();
  at("prompts").replaceChildren(...facts.prompts.map((prompt) => new Option(prompt, prompt)));
  for (let i = 0; i < STEPS; i++) {
    const button = element("button", { textContent: i, title: `step ${i}` });
    button.onclick = () => change({ when: settings.when.with(i, !settings.when[i]) });
    at("strip").append(button);
  }
  show();
  ask();
}

function step({ i, frames: pair }) {
  if (quickly) return;
  if (i === 0) frames = [];
  frames[i] = pair;
  at("status").textContent = `Step ${i + 1} of ${STEPS}`;
  if (settings.step >= i) draw(i);
  curve(at("curve"), frames, settings.step);
}

function done({ frames: pair }) {
  at("problem").textContent = "";
  light({ boxes: [] });
  if (quickly) {
    paint(pair);
    return;
  }
  frames[STEPS] = pair;
  document.body.dataset.state = "done";
  at("status").textContent = told(pair);
  draw(settings.step);
  look();
}

/** The outcome in a sentence. */
function told([fixed, date]) {
  const right = (frame) => (frame.verdict.right ? "right" : "not right");
  return `Without DATE the finished picture is ${right(fixed)}, with DATE ${right(date)}.`;
}

function error({ text }) {
  at("problem").textContent = text;
  at("status").textContent = "";
  document.body.dataset.state = "error";
  light({ boxes: [] });
}

// ---- drawing ------------------------------------------------------------------------------------

function draw(i) {
  const shown = Math.min(i, frames.length - 1);
  if (!frames[shown]) return;
  paint(frames[shown]);
  at("step-says").textContent = i >= STEPS ? "finished" : `${i}: the picture that is expected there`;
  at("step").value = i;
  curve(at("curve"), frames, i);
}

/** Both pictures, with what the judge sees in them. */
function paint(pair) {
  for (const [n, name] of ["fixed", "date"].entries()) {
    const { pixels, h, verdict, moved } = pair[n];
    put(at(name), pixels);
    at(name).classList.remove("old");
    at(`${name}-h`).textContent = `h ${h.toFixed(3)}${moved ? `, moved by ${moved.toFixed(2)}` : ""}`;
    const items = verdict.statements.map(({ text, holds }) => (
      element("li", { textContent: text, className: holds ? "yes" : "no", title: holds ? "holds" : "does not hold" })
    ));
    at(`${name}-verdict`).replaceChildren(...items);
    const seen = verdict.things.map(({ colour, shape }) => `${colour} ${shape}`).join(" and ") || "nothing";
    at(name).setAttribute("aria-label", `${name === "date" ? "DATE" : "Fixed"}: the judge sees ${seen}`);
  }
}

function put(canvas, pixels) {
  canvas.getContext("2d").putImageData(new ImageData(pixels, 64, 64), 0, 0);
}

/** Light the boxes of what is being computed: those of one call of the engine together; none at the end. */
function light({ boxes }) {
  for (const button of BUTTONS) button.classList.toggle("on", boxes.includes(button.dataset.box));
}

// ---- what a step holds --------------------------------------------------------------------------

/** Ask what the step under the slider holds, and open the box that was chosen. */
function look() {
  at("inside").hidden = !settings.box;
  for (const button of BUTTONS) button.setAttribute("aria-expanded", button.dataset.box === settings.box);
  if (!settings.box || document.body.dataset.state !== "done") return;
  at("inside").replaceChildren(element("p", { textContent: "Looking" }));
  const i = settings.step < STEPS ? settings.step : EARLY; // of the finished picture nothing is left to come
  worker.postMessage({ kind: "inspect", id, i });
}

function openInside(told) {
  light({ boxes: [] });
  if (!settings.box) return; // closed again before this came
  const rows = { prompt: ofPrompt, c: ofEmbedding, x0bar: ofPicture, h: ofReward, grad: ofGradient, moved: ofMove };
  const hint = words("The slider of steps opens another step.");
  at("inside").replaceChildren(...rows[settings.box](told, frames[told.i][1]), hint);
}

const title = (text) => element("h2", { textContent: text });
const words = (text) => element("p", { textContent: text });

function ofPrompt({ words: tokens }) {
  const list = element("ul", { className: "tokens" });
  list.append(...tokens.map(({ word }) => element("li", { textContent: word })));
  return [title("The prompt, as the text encoder reads it"), list,
    words("Each word becomes 96 numbers; together they are the embedding c. The model knows no other words.")];
}

function ofEmbedding(told, frame) {
  return [title(`The embedding before step ${told.i}`),
    words(`16 positions of 96 numbers. In this step it lies ${frame.moved.toFixed(2)} away from what the text encoder said.`),
    bars(told.words, "How strongly the reward pulls at each position")];
}

function ofPicture(told) {
  const canvas = element("canvas", { width: 64, height: 64, className: "large" });
  put(canvas, told.picture);
  return [title(`What the model expects at step ${told.i}`), canvas,
    words("x\u0304\u2080 is the mean of all pictures that could still come out (Tweedie's formula). Early it is a blur, at the end the picture.")];
}

function ofReward(told, frame) {
  const after = frame.updated ? ` After this step's update it is ${frame.h.toFixed(3)}.` : " This step does not update.";
  return [title(`The reward at step ${told.i}`),
    words(`h = ${told.h.toFixed(3)}: the cosine between the expected picture and the prompt, by a small CLIP.${after}`)];
}

function ofGradient(told) {
  const canvas = element("canvas", { width: 16, height: 16, className: "large map" });
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", "Where the reward wants the picture changed");
  const most = Math.max(...told.map), pixels = new Uint8ClampedArray(4 * 256);
  told.map.forEach((value, i) => pixels.set([230, 120, 0, 255 * value / most], 4 * i));
  canvas.getContext("2d").putImageData(new ImageData(pixels, 16, 16), 0, 0);
  const under = element("canvas", { width: 64, height: 64, className: "large" });
  put(under, told.picture);
  const pile = element("div", { className: "pile" });
  pile.append(under, canvas);
  return [title("The gradient"), pile,
    words("Orange: where the reward wants the expected picture changed. The network pulls that back to the words:"),
    bars(told.words, "Length of the gradient at each position")];
}

function ofMove(told) {
  const strip = element("div", { className: "strip" });
  told.pictures.forEach((pixels, n) => {
    const figure = element("figure"), canvas = element("canvas", { width: 64, height: 64 });
    put(canvas, pixels);
    figure.append(canvas, element("figcaption", { textContent: `rho ${told.rhos[n]}` }));
    strip.append(figure);
  });
  return [title(`One update at step ${told.i}: what it promises, what it brings`), sweep(told), strip,
    words(`The first order promises h + rho \u00b7 ${told.slope.toFixed(4)}. Where the curve leaves the line, rho is too long for this step.`)];
}

// ---- the controls -------------------------------------------------------------------------------

function element(tag, properties = {}) {
  return Object.assign(document.createElement(tag), properties);
}

at("prompt").onchange = ({ target }) => change({ prompt: target.value });
at("seed").onchange = ({ target }) => change({ seed: within(target, 0, 99999) });
at("guidance").onchange = ({ target }) => change({ guidance: within(target, 1, 20) });
at("rho").oninput = ({ target }) => change({ rho: Number(target.value) }, true);
at("rho").onchange = ({ target }) => change({ rho: Number(target.value) });
at("anchor").onchange = ({ target }) => change({ anchor: target.value });
at("direction").onchange = ({ target }) => change({ direction: target.value });
at("step").oninput = ({ target }) => {
  settings.step = Number(target.value);
  draw(settings.step);
};
at("step").onchange = () => {
  history.replaceState(null, "", address());
  look();
};
at("more").onclick = ({ target }) => {
  const chosen = WHEN[target.dataset.strip];
  if (chosen) change({ when: Array.from({ length: STEPS }, (_, i) => chosen(i)) });
};
at("diagram").onclick = ({ target }) => {
  const box = target.closest("button")?.dataset.box;
  if (!box) return;
  settings.box = settings.box === box ? "" : box;
  look();
};
at("share").onclick = async ({ target }) => {
  history.replaceState(null, "", address());
  await navigator.clipboard?.writeText(address()).catch(() => {});
  target.textContent = "The link is in the address bar";
};
window.onhashchange = () => {
  fromAddress();
  change({});
};

/** The number of a field, or the one before where it is out of range, which the field says. */
function within(field, low, high) {
  const value = Number(field.value);
  const fits = field.value !== "" && value >= low && value <= high;
  at("problem").textContent = fits ? "" : `${field.id} goes from ${low} to ${high}`;
  return fits ? value : settings[field.id];
}

for (const { ask: question, set, answer } of QUESTIONS) {
  const item = element("li"), button = element("button", { textContent: "Set it up" });
  const solution = element("details");
  solution.append(element("summary", { textContent: "What we see" }), words(answer));
  button.onclick = () => {
    const { when, ...rest } = set;
    change(when ? { ...rest, when: Array.from({ length: STEPS }, (_, i) => WHEN[when](i)) } : rest);
    if (rest.box) look();
    at("pictures").scrollIntoView({ behavior: "smooth", block: "nearest" });
  };
  item.append(words(question), button, solution);
  document.querySelector("#questions ol").append(item);
}

// ---- loading ------------------------------------------------------------------------------------

/** Threads need two headers, which many hosts do not send: the service worker adds them. */
async function isolate() {
  if (!("serviceWorker" in navigator)) return;
  await navigator.serviceWorker.register("sw.js");
  await navigator.serviceWorker.ready;
  if (!self.crossOriginIsolated && !sessionStorage.getItem("isolated")) {
    sessionStorage.setItem("isolated", "tried");
    location.reload();
    await new Promise(() => {});
  }
}

await isolate().catch(() => {});
worker.postMessage({ kind: "load", on: new URLSearchParams(location.search).get("on") });
