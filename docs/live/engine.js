// The sampler: DDIM with and without DATE, on the graphs of model/. It runs inside the worker.

import { normal } from "./noise.js";
import { kinds, runtime } from "./runtime.js";
import { World } from "./world.js";

const here = (name) => new URL(name, import.meta.url).href;
// Each graph is one call, and what it computes of the diagram lights together: nobody sees inside a call.
const BOXES = { text: ["prompt", "c"], predict: ["x0bar"], look: ["x0bar", "h", "grad"], decode: ["h"] };
const GRAPHS = Object.keys(BOXES);
const CLOSE = 1e-3; // as near as a processor's numbers must come to the package's

/** The engine, ready to run. `asked` names what shall compute; told({loaded, whole}) hears of what is loaded. */
export async function load(asked, told) {
  const bytes = reader(await (await fetch(here("files.json"))).json(), told);
  const files = ["model/facts.json", "model/weights.bin", ...GRAPHS.map((name) => `model/${name}.onnx`)];
  let content = null, failed = "";
  for (const kind of await kinds(asked)) {
    const chosen = runtime(kind, bytes);
    content ??= Promise.all(files.map(bytes));
    try {
      const engine = await made(await chosen, ...(await content));
      if (kind === "webgpu") await engine.check();
      engine.how += failed;
      return engine;
    } catch (error) {
      if (kind !== "webgpu") throw error;
      failed = ", since WebGPU does not run here";
      console.warn(error);
    }
  }
}

/** A function that reads a file as bytes, and says of every piece that arrives how much is there of how much. */
function reader(sizes, told) {
  let loaded = 0, whole = 0;
  return async (name) => {
    whole += sizes[name];
    const answer = await fetch(here(name));
    if (!answer.ok) throw new Error(`${name} cannot be loaded: ${answer.status}`);
    const counting = new TransformStream({
      transform(piece, out) {
        loaded += piece.length;
        told({ loaded, whole });
        out.enqueue(piece);
      },
    });
    const stream = answer.body.pipeThrough(counting);
    const packed = name.endsWith(".gzip");
    const plain = packed ? stream.pipeThrough(new DecompressionStream("gzip")) : stream;
    return new Uint8Array(await new Response(plain).arrayBuffer());
  };
}

async function made({ ort, provider, how }, facts, weights, ...models) {
  const externalData = [{ path: "weights.bin", data: weights }];
  const options = { executionProviders: [provider], graphOptimizationLevel: "all", externalData };
  const graphs = {};
  for (const [n, name] of GRAPHS.entries()) graphs[name] = await ort.InferenceSession.create(models[n], options);
  return new Engine(ort, graphs, JSON.parse(new TextDecoder().decode(facts)), how);
}

class Engine {
  constructor(ort, graphs, facts, how) {
    Object.assign(this, { ort, graphs, facts, how, world: new World(facts), texts: new Map() });
    this.shape = facts.latent;
    this.told = () => {}; // hears which boxes of the diagram are about to be computed
    this.size = facts.latent.reduce((a, b) => a * b);
  }

  /** Refuse a processor whose numbers are not the package's: drivers of graphics processors have faults. */
  async check() {
    const { settings, xt, h } = this.facts.check;
    const job = await this.prepare(settings);
    const { state, info } = await this.step(job, this.start(job));
    const reward = (await this.decode([info.x0bar], job.prompt)).h[0];
    const apart = xt.map((value, n) => Math.abs(value - state.xt[n]));
    if (!(Math.max(...apart, Math.abs(h - reward)) < CLOSE)) throw new Error("The numbers of WebGPU are wrong here.");
  }

  /** One call of a graph; `first`: the boxes that were computed for it, beside its own. */
  async run(name, feeds, first = []) {
    this.told([...first, ...BOXES[name]]);
    const tensors = {};
    for (const [key, [data, dims]] of Object.entries(feeds)) {
      const kind = data instanceof BigInt64Array ? "int64" : "float32";
      tensors[key] = new this.ort.Tensor(kind, data, dims);
    }
    try {
      return await this.graphs[name].run(tensors);
    } catch (error) {
      if (this.how !== "WebGPU") throw error;
      throw new Error(`The graphics processor stopped: ${error.message} Reload the page, or write ?on=threads after its address.`);
    }
  }

  /** {c, dims, text, words, claims} of a prompt, null for the unconditional branch. */
  async encode(prompt) {
    if (!this.texts.has(prompt)) {
      const claims = prompt === null ? { text: "" } : this.world.parse(prompt);
      const { ids, words } = this.world.tokens(claims.text);
      const out = await this.run("text", { ids: [BigInt64Array.from(ids, BigInt), [1, ids.length]] });
      const [c, text] = [out.c, out.text];
      this.texts.set(prompt, { c: c.data, dims: c.dims, text: text.data, words, claims });
    }
    return this.texts.get(prompt);
  }

  /** The noise of a seed, which every run of it starts from. */
  noise(seed) {
    return normal(seed, this.size);
  }

  latent(data, count = 1) {
    return [data, [count, ...this.shape]];
  }

  /** Velocities at embeddings side by side, one Float32Array each, from one latent. */
  async velocities(xt, t, embeddings, dims, first) {
    const count = embeddings.length;
    const out = await this.run("predict", {
      xt: this.latent(joined(Array(count).fill(xt)), count),
      t: [Float32Array.from({ length: count }, () => t), [count]],
      c: [joined(embeddings), [count, ...dims.slice(1)]],
    }, first);
    return parts(out.v.data, count);
  }

  /** {picture, h} of latents, side by side. */
  async decode(latents, prompt) {
    const count = latents.length;
    const text = joined(Array(count).fill(prompt.text));
    const feeds = { x0: this.latent(joined(latents), count), text: [text, [count, prompt.text.length]] };
    const out = await this.run("decode", feeds);
    return { pictures: parts(out.picture.data, count), h: Array.from(out.h.data) };
  }

  /** h, grad_c h, x0bar, its gradient and picture, both velocities, at an embedding. */
  async look(xt, t, level, c, job) {
    const one = (value) => [Float32Array.of(value), []];
    const out = await this.run("look", {
      xt: this.latent(xt),
      t: [Float32Array.of(t), [1]],
      c: [c, job.prompt.dims],
      u: [job.nothing.c, job.prompt.dims],
      text: [job.prompt.text, [1, job.prompt.text.length]],
      alpha: one(level[0]),
      sigma: one(level[1]),
      w: one(job.guidance),
    });
    const data = (name) => out[name].data;
    return {
      h: data("h")[0], grad: data("grad"), x0bar: data("x0bar"), gradX0bar: data("grad_x0bar"),
      picture: data("picture"), vU: data("v_u"), vC: data("v_c"),
    };
  }

  /** A job with all that its steps need: {prompt, seed, guidance, steps, rho, anchor, when, direction}. */
  async prepare(settings) {
    const { timesteps, levels } = this.facts.schedules[settings.steps];
    const [prompt, nothing] = [await this.encode(settings.prompt), await this.encode(null)];
    return { ...settings, timesteps, levels, prompt, nothing };
  }

  start(job) {
    return { i: 0, xt: this.noise(job.seed), c: job.prompt.c };
  }

  /** One step of DDIM, with an update of the embedding where the job has one: {state, info}. */
  async step(job, state) {
    const { i, xt } = state, t = job.timesteps[i], level = job.levels[i];
    const moves = job.when?.[i] && job.rho > 0;
    const base = job.anchor === "running" ? state.c : job.prompt.c;
    let c = state.c, look = null;
    if (moves) {
      if (!job.direction) look = await this.look(xt, t, level, base, job);
      const direction = unit(look ? look.grad : normal(job.seed + 7919 * (i + 1), c.length));
      if (direction) c = added(base, direction, job.rho);
    }
    const told = look ? [c] : [job.nothing.c, c]; // a look has the unconditional branch
    const answers = await this.velocities(xt, t, told, job.prompt.dims, moves ? ["moved"] : []);
    const velocities = look ? [look.vU, ...answers] : answers;
    const v = mixed(velocities, job.guidance);
    const x0bar = combined(xt, level[0], v, -level[1]);
    const eps = combined(xt, level[1], v, level[0]);
    const [alpha, sigma] = job.levels[i + 1];
    const next = combined(x0bar, alpha, eps, sigma);
    const moved = distanceOf(c, job.prompt.c);
    return { state: { i: i + 1, xt: next, c }, info: { x0bar, moved, updated: Boolean(moves) } };
  }

  /** What a paused step holds: the gradient, and h along its direction, promised and as it comes. */
  async inspect(job, state, rhos) {
    const { i, xt } = state, t = job.timesteps[i], level = job.levels[i];
    const base = job.anchor === "running" ? state.c : job.prompt.c;
    const look = await this.look(xt, t, level, base, job);
    const slope = Math.hypot(...look.grad);
    const direction = unit(look.grad) ?? new Float32Array(base.length);
    const tried = rhos.map((rho) => added(base, direction, rho));
    const answers = await this.velocities(xt, t, tried, job.prompt.dims, ["moved"]);
    const means = answers.map((v) => combined(xt, level[0], mixed([look.vU, v], job.guidance), -level[1]));
    const { pictures, h } = await this.decode(means, job.prompt);
    const promised = rhos.map((rho) => look.h + rho * slope);
    const cells = this.size / this.shape[0];
    const channels = parts(look.gradX0bar, this.shape[0]);
    const map = Float32Array.from({ length: cells }, (_, n) => Math.hypot(...channels.map((one) => one[n])));
    const words = wordNorms(look.grad, job.prompt);
    return { i, t, h: look.h, slope, picture: look.picture, map, promised, measured: h, pictures, rhos, words };
  }
}

function wordNorms(grad, prompt) {
  const width = grad.length / prompt.dims[1];
  const all = Array.from({ length: prompt.dims[1] }, (_, n) => Math.hypot(...grad.subarray(n * width, (n + 1) * width)));
  const shown = prompt.words.map((word, n) => ({ word, norm: all[n] }));
  const rest = all.slice(prompt.words.length);
  if (rest.length) shown.push({ word: `${rest.length} more "end"`, norm: Math.hypot(...rest) });
  return shown;
}

function joined(arrays) {
  const all = new Float32Array(arrays.length * arrays[0].length);
  arrays.forEach((values, n) => all.set(values, n * values.length));
  return all;
}

function parts(data, count) {
  const size = data.length / count;
  return Array.from({ length: count }, (_, n) => data.slice(n * size, (n + 1) * size));
}

/** a x + b y. */
function combined(x, a, y, b) {
  return Float32Array.from(x, (value, n) => a * value + b * y[n]);
}

/** Guidance: v_u + w (v_c - v_u). */
function mixed([u, c], w) {
  return Float32Array.from(u, (value, n) => value + w * (c[n] - value));
}

/** x / ||x||, null where it is zero. */
function unit(x) {
  const length = Math.sqrt(x.reduce((sum, value) => sum + value * value, 0));
  return length > 0 ? x.map((value) => value / length) : null;
}

function added(c, direction, rho) {
  return Float32Array.from(c, (value, n) => value + rho * direction[n]);
}

function distanceOf(a, b) {
  return Math.sqrt(a.reduce((sum, value, n) => sum + (value - b[n]) ** 2, 0));
}
