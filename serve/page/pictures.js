// The stage: pictures at a whole multiple of their size, each with its facts.

import { copyButton } from "./copy.js";
import { subject } from "./request.js";

const stage = document.getElementById("stage");
const place = document.getElementById("pictures");
const GAP_PX = 12;
const HERO_PX = 576;

let shown = []; // addresses of the blobs on the stage
let newest = 0;

// Show pictures [{blob, seed, command}] of one request; false if others came while they were read.
export async function show(pictures, settings) {
  const turn = ++newest;
  const urls = pictures.map(({ blob }) => URL.createObjectURL(blob));
  const figures = await Promise.all(
    pictures.map((picture, index) => figure(picture, urls[index], settings)),
  );
  const overtaken = turn !== newest;
  for (const url of overtaken ? urls : shown) URL.revokeObjectURL(url);
  if (overtaken) return false;
  shown = urls;
  document.getElementById("empty").hidden = true;
  place.replaceChildren(...figures);
  fit();
  return true;
}

async function figure(picture, url, settings) {
  const image = new Image();
  image.src = url;
  image.alt = subject(settings);
  await image.decode();
  const save = document.createElement("a");
  save.href = url;
  save.download = `${picture.seed}.${settings.format}`;
  save.textContent = "Save";
  save.setAttribute("aria-label", `Save the picture of seed ${picture.seed}`);
  const facts = document.createElement("span");
  facts.className = "facts";
  const copy = copyButton(picture.command, `Copy curl for seed ${picture.seed}`);
  const caption = document.createElement("figcaption");
  caption.append(facts, save, copy);
  const made = document.createElement("figure");
  made.append(image, caption);
  made.facts = [`seed ${picture.seed}`, bytes(picture.blob.size)];
  return made;
}

// As large as there is room for; a small picture by a whole factor, so that its pixels stay square.
export function fit() {
  const figures = [...place.children];
  const across = Math.ceil(Math.sqrt(figures.length));
  const roomPx = Math.min(HERO_PX, stage.clientWidth);
  const cellPx = Math.floor((roomPx - (across - 1) * GAP_PX) / across);
  place.style.gridTemplateColumns = `repeat(${across}, max-content)`;
  for (const one of figures) {
    const image = one.querySelector("img");
    const { naturalWidth: width, naturalHeight: height } = image;
    const ratio = cellPx / Math.max(width, height);
    const scale = ratio >= 1 ? Math.floor(ratio) : ratio;
    image.width = Math.round(width * scale);
    image.height = Math.round(height * scale);
    image.classList.toggle("pixels", scale > 1);
    one.style.width = `${image.width}px`;
    const enlarged = scale === 1 ? "" : ` at ${scale > 1 ? `${scale}×` : percent(scale)}`;
    const facts = [`${width} × ${height} px${enlarged}`, ...one.facts].map((fact) => {
      const part = document.createElement("span");
      part.textContent = fact;
      return part;
    });
    one.querySelector(".facts").replaceChildren(...facts.flatMap((fact) => [fact, " "]));
  }
}

// "fresh"; "busy", while the next picture takes its time; "stale", where none comes.
export function state(name) {
  stage.dataset.state = name;
  stage.setAttribute("aria-busy", String(name === "busy"));
}

// Into view, for somebody who is further down.
export function reveal() {
  stage.scrollIntoView({ block: "nearest" });
}

export function clear() {
  newest += 1;
  place.replaceChildren();
  document.getElementById("empty").hidden = false;
}

function bytes(count) {
  return count < 1e6 ? `${(count / 1e3).toFixed(1)} kB` : `${(count / 1e6).toFixed(1)} MB`;
}

function percent(share) {
  return `${Math.round(share * 100)} %`;
}

new ResizeObserver(fit).observe(stage);
