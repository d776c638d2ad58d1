// The strip of what was made: a click brings all of it back.

import { copyButton } from "./copy.js";
import { subject } from "./request.js";

const MOST = 24;
const section = document.getElementById("history");
const strip = document.getElementById("strip");

let entries = []; // [{id, urls, element}], newest first

// Keep one made request: {settings, pictures, command, ...}. The same again moves to the front.
export function keep(made, recall) {
  const id = JSON.stringify([made.settings, made.model]);
  const known = entries.find((one) => one.id === id) ?? entry(id, made, recall);
  entries = [known, ...entries.filter((one) => one !== known)];
  for (const old of entries.splice(MOST)) old.urls.forEach((url) => URL.revokeObjectURL(url));
  if (strip.firstChild !== known.element) strip.prepend(known.element);
  while (strip.children.length > entries.length) strip.lastChild.remove();
  mark(made);
  section.hidden = false;
}

// Mark the entry that is shown; none, where it is not in the strip.
export function mark(made) {
  const id = made && JSON.stringify([made.settings, made.model]);
  for (const one of entries) {
    one.element.firstChild.setAttribute("aria-pressed", String(one.id === id));
  }
}

function entry(id, made, recall) {
  const { settings, pictures } = made;
  const urls = pictures.slice(0, 4).map(({ blob }) => URL.createObjectURL(blob));
  const button = document.createElement("button");
  button.type = "button";
  button.className = urls.length > 1 ? "several" : "one";
  button.title = subject(settings);
  const number = pictures.length > 1 ? `, ${pictures.length} pictures` : "";
  button.setAttribute("aria-label", `${subject(settings)}, seed ${settings.seed}${number}`);
  button.append(...urls.map((url) => {
    const image = new Image();
    image.src = url;
    image.alt = "";
    return image;
  }));
  if (pictures.length > 1) {
    const badge = document.createElement("span");
    badge.className = "badge";
    badge.textContent = `×${pictures.length}`;
    button.append(badge);
  }
  button.addEventListener("click", () => recall(made));
  const element = document.createElement("li");
  element.append(button, copyButton(made.command, `Copy curl for ${subject(settings)}`));
  return { id, urls, element };
}
