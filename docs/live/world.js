// The shapes world: what a prompt claims, what is in a picture, and which claims hold there.
// The same as datekit/shapes/captions.py and oracle.py, which the tests compare it with.

const SIDE = 64;

export class World {
  /** facts: model/facts.json, with the words, colours, shapes and limits of the package. */
  constructor(facts) {
    this.facts = facts;
    const any = (words) => Object.keys(words).join("|");
    const shapes = facts.shapes.join("|");
    this.phrase = new RegExp(`^(${any(facts.numbers)}) (?:(${any(facts.colours)}) )?(${shapes})s?$`);
  }

  /**
   * {wants: [{shape, colour, count}], relation, text} of a prompt. Full stops around it claim nothing, but the
   * tokenizer reads them: they stay in the text. Throws an Error that says what is known.
   */
  parse(prompt) {
    const read = prompt.toLowerCase().replace(/\s+/g, " ");
    const text = read.replaceAll(" ,", ",").replace(/^[ .]+|[ .]+$/g, "");
    const relation = this.facts.relations.find((name) => text.includes(` ${name} `)) ?? null;
    const parts = relation ? text.split(` ${relation} `) : text.split(/, and |, | and /);
    const matches = parts.map((part) => part.match(this.phrase)).filter(Boolean);
    const wants = matches.map(([, number, colour, shape]) => (
      { shape, colour: colour ?? null, count: this.facts.numbers[number] }
    ));
    const said = wants.map((want) => this.say(want));
    const length = relation ? said.length === 2 : said.length <= 3;
    const alone = wants.length === 1 || wants.every((want) => want.count === 1);
    const plain = new Set(said).size === said.length && alone;
    if (!length || !plain || !said.length || said.join("|") !== parts.join("|")) {
      throw new Error(this.unknown(text));
    }
    return { wants, relation, text: read };
  }

  /** Why a text is not understood, and what is. */
  unknown(text) {
    const words = text.replaceAll(",", " , ").split(" ").filter(Boolean);
    const strange = words.filter((word) => !(word in this.facts.words));
    const { colours, shapes, relations } = this.facts;
    const known = `This model knows ${Object.keys(colours).join(", ")}; ${shapes.join(", ")}; ${relations.join(", ")}.`;
    const why = strange.length ? `"${strange[0]}" is not a word of this world.` : "This sentence is not of this world.";
    return `${why} ${known} Try "a red circle left of a blue square", "two green stars" or "a circle and a square".`;
  }

  /** A want in words. */
  say({ shape, colour, count }) {
    const number = Object.entries(this.facts.numbers).find(([, n]) => n === count)[0];
    return [number, colour, shape + (count > 1 ? "s" : "")].filter(Boolean).join(" ");
  }

  /** Token numbers of a parsed prompt's text, cut or padded to the window of the text encoder, and its words. */
  tokens(text) {
    const { start, end, window, words, stop } = this.facts;
    const said = [...text.matchAll(/[a-z]+|[,.]/g)].slice(0, window - 2);
    const number = ({ 0: word, index }) => (text.startsWith("..", index) ? stop : words[word]);
    const ids = [start, ...said.map(number), end];
    while (ids.length < window) ids.push(end);
    return { ids, words: ["start", ...said.map(([word]) => word), "end"] };
  }

  /** [{text, holds}] of a parsed prompt in a picture (3 x 64 x 64 numbers, channels first). */
  judge(claims, picture) {
    const things = this.detect(picture);
    const found = [];
    const hits = claims.wants.map((want) => {
      const same = things.filter((thing) => (
        thing.shape === want.shape && (want.colour === null || want.colour === thing.colour)
      ));
      const holds = want.count === 1 ? same.length >= 1 : same.length === want.count;
      found.push({ text: this.say(want), holds });
      return same;
    });
    if (claims.relation) {
      const holds = hits[0].some((a) => hits[1].some((b) => relation(a, b) === claims.relation));
      found.push({ text: claims.relation, holds });
    }
    const total = claims.wants.reduce((sum, want) => sum + want.count, 0);
    found.push({ text: `${total} object${total > 1 ? "s" : ""}`, holds: things.length === total });
    return { statements: found, right: found.every(({ holds }) => holds), things };
  }

  /** The things in a picture, [{colour, shape, x, y, size}]; "unknown" is a colour or shape of none. */
  detect(picture) {
    const pixel = (i) => [0, 1, 2].map((channel) => picture[channel * SIDE * SIDE + i]);
    const ground = [0, 1, 2].map((channel) => {
      const at = picture.subarray(channel * SIDE * SIDE, (channel + 1) * SIDE * SIDE);
      return median(border().map((i) => at[i]));
    });
    const { CONTRAST, SPECK, OVERLAP, TINT, NOISE } = this.facts.oracle;
    const difference = Array.from({ length: SIDE * SIDE }, (_, i) => pixel(i).map((v, k) => v - ground[k]));
    const stands = difference.map((d) => Math.max(...d.map(Math.abs)) > CONTRAST);
    const things = [];
    for (const region of regions(stands)) {
      if (region.length / (SIDE * SIDE) < SPECK) continue;
      const inRegion = new Set(region);
      const eroded = region.filter((i) => neighbours(i).length === 4 && neighbours(i).every((n) => inRegion.has(n)));
      const inside = eroded.length ? eroded : region;
      const paint = [0, 1, 2].map((k) => median(inside.map((i) => pixel(i)[k])));
      const colour = nearest(this.facts.colours, paint, TINT);
      const step = [0, 1, 2].map((k) => median(inside.map((i) => difference[i][k])));
      const square = Math.max(dot(step, step), 1e-6);
      const alpha = new Float64Array(SIDE * SIDE);
      for (const i of new Set(region.flatMap((n) => [n, ...neighbours(n)]))) {
        const share = Math.min(1, Math.max(0, dot(difference[i], step) / square));
        alpha[i] = share < NOISE ? 0 : share;
      }
      things.push(this.fit(alpha, colour, OVERLAP));
    }
    return things;
  }

  /** The thing whose shape, at the centre and with the area of a soft mask, overlaps it most. */
  fit(alpha, colour, least) {
    let sum = 0, x = 0, y = 0;
    alpha.forEach((a, i) => {
      sum += a;
      x += a * ((i % SIDE) + 0.5);
      y += a * (Math.floor(i / SIDE) + 0.5);
    });
    const centre = { x: x / sum / SIDE, y: y / sum / SIDE };
    let best = null, most = -1;
    for (const shape of this.facts.shapes) {
      const size = Math.sqrt(sum) / SIDE / Math.sqrt(this.facts.areas[shape]);
      const overlap = this.overlap({ ...centre, shape, size }, alpha);
      if (overlap > most) [best, most] = [{ colour, shape, ...centre, size }, overlap];
    }
    return most >= least ? best : { ...best, shape: "unknown" };
  }

  /** Shared area over joint area of a drawn thing and a soft mask. */
  overlap({ x, y, shape, size }, alpha) {
    let shared = 0, joint = 0;
    for (let i = 0; i < SIDE * SIDE; i++) {
      const px = (((i % SIDE) + 0.5) / SIDE - x) / size;
      const py = ((Math.floor(i / SIDE) + 0.5) / SIDE - y) / size;
      const off = distance(px, py, this.facts.polygons[shape]) * size * SIDE;
      const drawn = Math.min(1, Math.max(0, 0.5 - off));
      shared += Math.min(drawn, alpha[i]);
      joint += Math.max(drawn, alpha[i]);
    }
    return shared / joint;
  }
}

/** How a lies to b. */
function relation(a, b) {
  const [dx, dy] = [a.x - b.x, a.y - b.y];
  if (Math.abs(dx) > Math.abs(dy)) return dx < 0 ? "left of" : "right of";
  return dy < 0 ? "above" : "below";
}

/** Signed distance to a polygon of size 1, or to a circle where there is none; negative inside. */
function distance(x, y, corners) {
  if (!corners) return Math.hypot(x, y) - 1;
  let squared = Infinity, inside = false;
  corners.forEach(([ax, ay], n) => {
    const [bx, by] = corners[(n + 1) % corners.length];
    const [ex, ey] = [bx - ax, by - ay];
    const along = Math.min(1, Math.max(0, ((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey)));
    squared = Math.min(squared, (x - ax - along * ex) ** 2 + (y - ay - along * ey) ** 2);
    if (ey && (y < ay) !== (y < by) && x < ax + (y - ay) * (ex / ey)) inside = !inside;
  });
  return inside ? -Math.sqrt(squared) : Math.sqrt(squared);
}

/** Pixels of the two outermost rows and columns; corners count once for each. */
function border() {
  const outer = [0, 1, SIDE - 2, SIDE - 1];
  const all = [...Array(SIDE).keys()];
  const rows = outer.flatMap((row) => all.map((column) => row * SIDE + column));
  return [...rows, ...all.flatMap((row) => outer.map((column) => row * SIDE + column))];
}

/** Groups of pixels that touch, corners included, in the order of their first pixel. */
function regions(stands) {
  const seen = new Uint8Array(SIDE * SIDE), groups = [];
  stands.forEach((on, first) => {
    if (!on || seen[first]) return;
    const group = [], queue = [first];
    seen[first] = 1;
    while (queue.length) {
      const i = queue.pop();
      group.push(i);
      for (const n of neighbours(i, true)) {
        if (stands[n] && !seen[n]) {
          seen[n] = 1;
          queue.push(n);
        }
      }
    }
    groups.push(group);
  });
  return groups;
}

/** The pixels beside one, 4 or with corners 8, fewer at the border. */
function neighbours(i, corners = false) {
  const [x, y] = [i % SIDE, Math.floor(i / SIDE)], found = [];
  for (let dy = -1; dy <= 1; dy++) {
    for (let dx = -1; dx <= 1; dx++) {
      const apart = Math.abs(dx) + Math.abs(dy);
      const inside = x + dx >= 0 && x + dx < SIDE && y + dy >= 0 && y + dy < SIDE;
      if (inside && apart && (corners || apart === 1)) found.push(i + dy * SIDE + dx);
    }
  }
  return found;
}

/** The name of the nearest colour, "unknown" beyond a distance. */
function nearest(colours, paint, most) {
  const off = Object.entries(colours).map(([name, rgb]) => [Math.hypot(...rgb.map((v, k) => v - paint[k])), name]);
  const [least, name] = off.reduce((a, b) => (b[0] < a[0] ? b : a));
  return least <= most ? name : "unknown";
}

function dot(a, b) {
  return a.reduce((sum, v, k) => sum + v * b[k], 0);
}

function median(values) {
  const sorted = Float64Array.from(values).sort(), half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}
