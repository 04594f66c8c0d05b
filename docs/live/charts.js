// Small charts as SVG, each with its numbers in words for those who do not see it.

const SVG = "http://www.w3.org/2000/svg";

function shape(tag, attributes, text = "") {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.textContent = text;
  return element;
}

/** A scale from numbers to places. */
function scale(values, from, to) {
  const low = Math.min(...values), high = Math.max(...values);
  return (value) => (high > low ? from + (to - from) * (value - low) / (high - low) : (from + to) / 2);
}

/** h of the expected picture by step: both runs, and where the slider stands. */
export function curve(svg, frames, step) {
  const known = [...frames.keys()].filter((i) => frames[i]);
  const all = known.flatMap((i) => frames[i].map(({ h }) => h));
  const x = (i) => 40 + 370 * i / 20, y = scale([...all, Math.min(...all) + 0.02], 120, 12);
  svg.replaceChildren(shape("line", { x1: x(step), x2: x(step), y1: 8, y2: 124, class: "here" }));
  for (const [n, name] of ["fixed", "date"].entries()) {
    const points = known.map((i) => `${x(i)},${y(frames[i][n].h)}`).join(" ");
    svg.append(shape("polyline", { points, class: name }));
    for (const i of known.filter((k) => n && frames[k][1].updated)) {
      svg.append(shape("circle", { cx: x(i), cy: y(frames[i][1].h), r: 2.5, class: name }));
    }
  }
  for (const value of [Math.min(...all), Math.max(...all)]) {
    svg.append(shape("text", { x: 34, y: y(value) + 4, "text-anchor": "end" }, value.toFixed(2)));
  }
  svg.append(shape("text", { x: 225, y: 145, "text-anchor": "middle" }, "step; dots: updates"));
  const last = frames[known.at(-1)];
  const told = last.map(({ h }, n) => `${["fixed", "DATE"][n]} ${h.toFixed(3)}`).join(", ");
  svg.setAttribute("aria-label", `The reward of the expected picture by step; at step ${known.at(-1)}: ${told}`);
}

/** A bar for each word. */
export function bars(rows, label) {
  const most = Math.max(...rows.map(({ norm }) => norm)) || 1, height = 20 * rows.length + 6;
  const told = rows.map(({ word, norm }) => `${word} ${norm.toFixed(4)}`).join(", ");
  const svg = shape("svg", { viewBox: `0 0 320 ${height}`, role: "img", "aria-label": `${label}: ${told}`, class: "bars" });
  rows.forEach(({ word, norm }, n) => {
    svg.append(shape("text", { x: 92, y: 20 * n + 16, "text-anchor": "end" }, word));
    svg.append(shape("rect", { x: 98, y: 20 * n + 5, width: 215 * norm / most, height: 13 }));
  });
  return svg;
}

/** h after one update by rho: as the first order promises, and as it comes. */
export function sweep({ rhos, promised, measured }) {
  const told = rhos.map((rho, n) => `rho ${rho}: promised ${promised[n].toFixed(3)}, measured ${measured[n].toFixed(3)}`);
  const svg = shape("svg", { viewBox: "0 0 420 170", role: "img", "aria-label": told.join("; ") });
  const x = (n) => 45 + 360 * n / (rhos.length - 1);
  const room = 0.3 * (Math.max(...measured) - Math.min(...measured)) + 0.01;
  const top = Math.max(...measured) + room;
  const y = scale([Math.min(...measured) - room, top], 130, 12);
  const within = promised.findLastIndex((value) => value <= top);
  const line = (values) => values.map((value, n) => `${x(n)},${y(value)}`).join(" ");
  svg.append(shape("polyline", { points: line(promised.slice(0, within + 1)), class: "promised" }));
  svg.append(shape("polyline", { points: line(measured), class: "date" }));
  measured.forEach((value, n) => {
    svg.append(shape("circle", { cx: x(n), cy: y(value), r: 3, class: "date" }));
    svg.append(shape("text", { x: x(n), y: 150, "text-anchor": "middle" }, rhos[n]));
  });
  svg.append(shape("text", { x: 225, y: 167, "text-anchor": "middle" }, "rho; dashed: the promise"));
  for (const value of [Math.min(...measured) - room, top]) {
    svg.append(shape("text", { x: 40, y: y(value) + 4, "text-anchor": "end" }, value.toFixed(3)));
  }
  return svg;
}
