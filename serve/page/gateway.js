// The gateway as this page sees it: what it serves, and pictures with the time they took.

import { body, seedsFrom } from "./request.js";

const KEY = "singlepass-key"; // in sessionStorage: gone with the tab

// An answer that is no picture; status 0 where there was none at all.
// `fields`: [{name, detail}]; `againMs`: when to ask again, or null.
export class Refused extends Error {
  constructor(message, { status = 0, fields = [], againMs = null } = {}) {
    super(message);
    Object.assign(this, { status, fields, againMs });
  }
}

export function key() {
  return sessionStorage.getItem(KEY) ?? "";
}

export function setKey(value) {
  if (value) sessionStorage.setItem(KEY, value);
  else sessionStorage.removeItem(KEY);
}

// The models that are served: [{id, version, sizes, max_images, default}].
export async function models(signal) {
  const answer = await ask("/v1/models", { signal });
  return (await answer.json()).data;
}

// {pictures: [{blob, seed}], model, took}; `took` is milliseconds by stage, in order.
export async function generate(settings, signal) {
  const start = performance.now();
  const answer = await ask("/generate", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: body(settings),
    signal,
  });
  const pictures = await read(answer, settings);
  const roundTripMs = performance.now() - start;
  return {
    pictures,
    model: answer.headers.get("X-Model"),
    took: stages(answer.headers.get("Server-Timing") ?? "", roundTripMs),
    roundTripMs,
  };
}

async function read(answer, settings) {
  if (!answer.headers.get("Content-Type").startsWith("application/json")) {
    return [{ blob: await answer.blob(), seed: answer.headers.get("X-Seed") }];
  }
  const { images, media_type: type } = await answer.json();
  const seeds = seedsFrom(settings.seed || images[0].seed, images.length);
  return images.map(({ image }, index) => {
    const bytes = Uint8Array.from(atob(image), (character) => character.charCodeAt(0));
    return { blob: new Blob([bytes], { type }), seed: seeds[index] };
  });
}

// Server-Timing, with what it leaves out: the rest of the gateway's work, and the way there.
function stages(header, roundTripMs) {
  const measured = [...header.matchAll(/([\w-]+);dur=([\d.]+)/g)];
  const took = measured.map(([, name, duration]) => [name, Number(duration)]);
  const total = took.find(([name]) => name === "total")?.[1] ?? 0;
  const named = took.filter(([name]) => name !== "total");
  const sum = named.reduce((soFar, [, duration]) => soFar + duration, 0);
  const rest = [["gateway", total - sum], ["network", roundTripMs - total]];
  return [...named, ...rest.map(([name, duration]) => [name, Math.max(0, duration)])];
}

async function ask(path, options) {
  const headers = { ...options.headers };
  if (key()) headers.Authorization = `Bearer ${key()}`;
  let answer;
  try {
    answer = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Refused("The gateway does not answer.", { againMs: Infinity });
  }
  if (!answer.ok) throw await refusal(answer);
  return answer;
}

// A problem of /generate or an error of /v1, in one form.
async function refusal(answer) {
  const text = await answer.text();
  let said = {};
  try {
    said = JSON.parse(text);
  } catch {
    // a proxy in front answers in its own way: its status is what is known
  }
  const message = said.detail ?? said.error?.message ?? `The answer is ${answer.status}.`;
  const waits = [429, 502, 503, 504].includes(answer.status);
  const waitS = Number(answer.headers.get("Retry-After")) || 1;
  return new Refused(message, {
    status: answer.status,
    fields: said.errors ?? [],
    againMs: waits ? waitS * 1000 : null,
  });
}
