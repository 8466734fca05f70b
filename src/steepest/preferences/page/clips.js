// Clips side by side: one clock for all of them. They start together, loop together and are scrubbed together.

export class Player {
  constructor({ group, play, word, scrub, clock }) {
    Object.assign(this, { group, play, word, scrub, clock });
    this.videos = [];
    this.playing = false;
    this.wanted = 0; // counts what was asked for: an old answer of play() must not undo a newer pause()
    play.addEventListener("click", () => this.toggle());
    scrub.addEventListener("input", () => { this.pause(); this.seek(scrub.value / 1000); });
    const tick = () => { this.tick(); requestAnimationFrame(tick); };
    requestAnimationFrame(tick);
  }

  // Take over the videos of a comparison; play them once all can be played, unless motion is not wanted.
  show(videos) {
    this.clear();
    this.videos = videos;
    this.group.hidden = videos.length === 0;
    if (!videos.length) return;
    this.scrub.value = 0;
    this.word.textContent = "Play";
    const ready = videos.map((video) => new Promise((resolve) => {
      if (video.readyState >= HTMLMediaElement.HAVE_CURRENT_DATA) resolve();
      else {
        video.addEventListener("loadeddata", resolve, { once: true });
        video.addEventListener("error", resolve, { once: true });
      }
    }));
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    Promise.all(ready).then(() => { if (this.videos === videos && !still) this.start(); });
  }

  clear() {
    for (const video of this.videos) { video.pause(); video.removeAttribute("src"); video.load(); }
    this.videos = [];
    this.playing = false;
    this.wanted += 1;
    this.group.hidden = true;
  }

  get duration() {
    return Math.max(0, ...this.videos.map((v) => (Number.isFinite(v.duration) ? v.duration : 0)));
  }

  toggle() {
    if (!this.videos.length) return;
    if (this.playing) this.pause(); else this.start();
  }

  start() {
    const asked = (this.wanted += 1);
    if (this.videos.every((v) => v.ended || v.currentTime >= v.duration)) this.seek(0);
    Promise.all(this.videos.map((v) => v.play())).then(
      () => { if (asked === this.wanted) this.mark(true); },
      () => { if (asked === this.wanted) this.mark(false); },
    );
  }

  pause() {
    this.wanted += 1;
    for (const video of this.videos) video.pause();
    this.mark(false);
  }

  mark(playing) {
    this.playing = playing;
    this.word.textContent = playing ? "Pause" : "Play";
  }

  seek(share) {
    for (const video of this.videos) {
      if (Number.isFinite(video.duration)) video.currentTime = share * video.duration;
    }
  }

  tick() {
    const total = this.duration;
    if (!total) return;
    if (this.playing && this.videos.every((v) => v.ended)) { this.seek(0); this.start(); }
    const at = Math.max(...this.videos.map((v) => v.currentTime));
    if (document.activeElement !== this.scrub || this.playing) this.scrub.value = Math.round((1000 * at) / total);
    const text = `${at.toFixed(1)} of ${total.toFixed(1)} s`;
    if (this.clock.textContent !== text) {
      this.clock.textContent = text;
      this.scrub.setAttribute("aria-valuetext", text);
    }
  }
}

// A clip as a video without controls of its own. Media are asked for by number, never by path.
export function video(id, name) {
  const element = document.createElement("video");
  element.src = `/api/clip/${Number(id)}`;
  element.muted = true;
  element.playsInline = true;
  element.preload = "auto";
  element.disablePictureInPicture = true;
  element.setAttribute("aria-label", name);
  return element;
}
