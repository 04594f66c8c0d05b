// Runs the engine apart from the page, so that the page never waits. The newest message wins.

import { load } from "./engine.js";

const KEPT = 8; // runs, so that going back to a rho is at once
const RHOS = [0, 0.25, 0.5, 1, 2, 4, 8];
const runs = new Map();
let engine = null, newest = 0, latest = null;

const turn = () => new Promise((done) => { // lets messages in between two steps
  const channel = new MessageChannel();
  channel.port1.onmessage = () => done();
  channel.port2.postMessage(0);
});

self.onmessage = async ({ data }) => {
  if (data.kind === "run") newest = data.id;
  try {
    await { load: start, run, inspect }[data.kind](data);
  } catch (error) {
    self.postMessage({ kind: "error", id: data.id, text: error.message });
  }
};

async function start({ on }) {
  engine = await load(on, (told) => self.postMessage({ kind: "progress", ...told }));
  engine.told = (boxes) => self.postMessage({ kind: "light", id: newest, boxes });
  self.postMessage({ kind: "ready", facts: engine.facts, how: engine.how });
}

/** What a job's run holds so far; a run without an update is shared by all that begin like it. */
function runOf(settings, fixed) {
  const { prompt, seed, guidance, steps, rho, anchor, when, direction } = settings;
  const moving = fixed || !rho || !when.includes(true) ? null : { rho, anchor, when, direction };
  const key = JSON.stringify([prompt, seed, guidance, steps, moving]);
  const found = runs.get(key) ?? { states: [], frames: [], first: moving ? when.indexOf(true) : steps };
  runs.delete(key); // to the end, as the newest
  runs.set(key, found);
  while (runs.size > KEPT) runs.delete(runs.keys().next().value);
  return found;
}

/** Both runs, step by step: the fixed embedding and DATE. Stops when a newer run is asked for. */
async function run({ id, settings }) {
  const job = await engine.prepare(settings);
  const still = { ...job, when: null };
  const pair = [runOf(settings, true), runOf(settings, false)];
  latest = { id, job, run: pair[1] };
  const [fixed, date] = pair;
  for (let i = 0; i <= job.steps; i++) {
    if (newest !== id) return;
    await advance(still, fixed, i);
    if (date !== fixed) {
      if (i < date.first && !date.frames[i]) share(fixed, date, i);
      await advance(job, date, i);
    }
    if (i < job.steps) {
      self.postMessage({ kind: "step", id, i, frames: pair.map((one) => one.frames[i]) });
      await turn();
    }
  }
  const frames = pair.map((one) => one.frames[job.steps]);
  const latents = pair.map((one) => one.states[job.steps].xt);
  self.postMessage({ kind: "done", id, frames, latents: settings.exact ? latents : null });
}

/** Until the first update both are one run. */
function share(from, to, i) {
  for (const name of ["states", "frames"]) to[name][i] = from[name][i];
  to.states[i + 1] ??= from.states[i + 1];
}

/** The frame of step i, which is what is expected there; that of the last is the picture itself. */
async function advance(job, run, i) {
  if (run.frames[i]) return;
  run.states[0] ??= engine.start(job);
  let latent = run.states[i].xt, told = {};
  if (i < job.steps) {
    const { state, info } = await engine.step(job, run.states[i]);
    run.states[i + 1] = state;
    latent = info.x0bar;
    told = { moved: info.moved, updated: info.updated };
  }
  const { pictures, h } = await engine.decode([latent], job.prompt);
  const picture = pictures[0].map((value) => Math.min(1, Math.max(0, value)));
  run.frames[i] = { ...told, h: h[0], pixels: rgba(picture), verdict: engine.world.judge(job.prompt.claims, picture) };
}

/** What the newest run holds before step i. */
async function inspect({ id, i }) {
  if (!latest || latest.id !== id || !latest.run.states[i]) return;
  const { job, run } = latest;
  const found = await engine.inspect(job, run.states[i], RHOS);
  const pictures = found.pictures.map(rgba), shown = rgba(found.picture);
  if (newest === id) self.postMessage({ kind: "inside", id, ...found, pictures, picture: shown });
}

/** A picture (3 x H x W in [0, 1]) as bytes for a canvas. */
function rgba(picture) {
  const size = picture.length / 3, bytes = new Uint8ClampedArray(4 * size);
  for (let i = 0; i < size; i++) {
    for (let k = 0; k < 3; k++) bytes[4 * i + k] = 255 * picture[k * size + i];
    bytes[4 * i + 3] = 255;
  }
  return bytes;
}
