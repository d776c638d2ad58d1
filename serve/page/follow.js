// The newest request wins: one is in work at a time, and whatever came before it is given up.

const LONGEST_WAIT_MS = 400;
const LONGEST_PAUSE_MS = 8000;
const OLD_SHARE = 0.7; // of the smoothed time, against the newest measurement

export class Follower {
  #make;
  #made;
  #refused;
  #timer = 0;
  #controller = null; // of the request that is in work
  #began = 0;
  #pictureMs = 0; // how long a picture takes, smoothed
  #notBefore = 0; // the gateway asked for no request before this moment
  #unanswered = 0;

  // make(settings, signal) gives a result with `roundTripMs`, or null where there is nothing to
  // ask for; then made(settings, result), or refused(error, againMs).
  constructor(make, { made, refused }) {
    this.#make = make;
    this.#made = made;
    this.#refused = refused;
  }

  // Ask for the newest settings. While somebody types, wait first, but never longer than a picture
  // takes: then at most as much time is lost by waiting as by pictures that nobody looks at.
  follow(settings, { now = false } = {}) {
    this.stop();
    const typingMs = now ? 0 : Math.min(this.#pictureMs, LONGEST_WAIT_MS);
    const toldMs = this.#notBefore - performance.now();
    this.#timer = setTimeout(() => this.#run(settings), Math.max(typingMs, toldMs, 0));
  }

  // Give up what waits and what is in work; the gateway drops what it has not begun. How long a
  // picture would have taken is not known then, but that it takes as long as it has been awaited.
  stop() {
    clearTimeout(this.#timer);
    this.#controller?.abort();
    if (this.#controller) this.#pictureMs = Math.max(this.#pictureMs, performance.now() - this.#began);
    this.#controller = null;
  }

  // The network is back, or the key is another: what the gateway said before holds no longer.
  forget() {
    this.#notBefore = 0;
    this.#unanswered = 0;
  }

  async #run(settings) {
    const controller = new AbortController();
    this.#controller = controller;
    this.#began = performance.now();
    try {
      const result = await this.#make(settings, controller.signal);
      if (controller.signal.aborted) return;
      this.#controller = null;
      this.forget();
      if (result) this.#measure(result.roundTripMs);
      this.#made(settings, result);
    } catch (error) {
      if (controller.signal.aborted) return;
      this.#controller = null;
      this.#again(settings, error);
    }
  }

  #measure(takenMs) {
    const known = this.#pictureMs || takenMs;
    this.#pictureMs = OLD_SHARE * known + (1 - OLD_SHARE) * takenMs;
  }

  #again(settings, error) {
    const silent = error.status === 0;
    this.#unanswered = silent ? this.#unanswered + 1 : 0;
    const pauseMs = Math.min(LONGEST_PAUSE_MS, 500 * 2 ** this.#unanswered);
    const againMs = silent ? pauseMs : error.againMs ?? null;
    if (againMs !== null) {
      this.#notBefore = performance.now() + againMs;
      this.#timer = setTimeout(() => this.#run(settings), againMs);
    }
    this.#refused(error, againMs);
  }
}
