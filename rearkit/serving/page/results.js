// Requests and their images. Each request has its id before it is sent, and is remembered by the tab until it is
// removed: after a reload, or where the server was started anew, the page goes on with it, or sends it again.

import { picture } from "/page/brush.js";

const KEPT = "rearkit-requests";
const MOST = 40; // requests that are remembered
const AT_ONCE = 2; // followed at once, since a browser opens no more than six connections to a server
const settled = (status) => ["done", "failed", "cancelled"].includes(status);

export class Results {
  // `take` gets a request whose settings are wanted again, `edit` an image, `colours` has three bytes a code.
  constructor(about, { take, edit }) {
    this.about = about;
    this.act = { take, edit };
    this.colours = Uint8Array.from(atob(about.colours), (one) => one.charCodeAt(0));
    this.list = document.getElementById("jobs");
    this.cards = [];
    const kept = JSON.parse(sessionStorage.getItem(KEPT) ?? "[]");
    for (const entry of kept) this.add(new Card(this, entry), false);
  }

  // Send a request: images to draw, or a photo to rebuild.
  send(path, body) {
    const id = btoa(String.fromCharCode(...crypto.getRandomValues(new Uint8Array(18)))).replaceAll("+", "-").replaceAll("/", "_");
    const card = new Card(this, { id, path, body });
    this.add(card, true);
    // Below the form, where there is no room beside it.
    const block = matchMedia("(max-width: 52rem)").matches ? "start" : "nearest";
    card.item.scrollIntoView({ block, behavior: "smooth" });
    return card;
  }

  add(card, fresh) {
    this.cards.push(card);
    this.list.prepend(card.item);
    this.changed();
    card.begin(fresh);
  }

  remove(card) {
    this.cards = this.cards.filter((other) => other !== card);
    card.item.remove();
    this.changed();
  }

  changed() {
    document.getElementById("empty").hidden = this.cards.length > 0;
    sessionStorage.setItem(KEPT, JSON.stringify(this.cards.slice(-MOST).map((card) => card.entry)));
    const live = this.cards.filter((card) => card.job && !settled(card.job.status));
    for (const card of live.slice(0, AT_ONCE)) card.follow();
  }
}

class Card {
  constructor(results, entry) {
    this.results = results;
    this.entry = entry;
    this.job = null;
    this.item = document.getElementById("job").content.firstElementChild.cloneNode(true);
    this.find = (selector) => this.item.querySelector(selector);
    this.find(".images").classList.toggle("named", entry.path.endsWith("reconstructions"));
    this.find(".cancel").addEventListener("click", () => this.cancel());
    this.find(".remove").addEventListener("click", () => { this.cancel(); results.remove(this); });
    this.find(".take").addEventListener("click", () => results.act.take(this.job.request));
    this.find(".again").addEventListener("click", () => {
      results.send(entry.path, { ...this.job.request, seed: (this.job.request.seed + 1) % 2 ** 31 }).item.focus();
    });
    this.find(".command").addEventListener("click", (event) => copy(event.target, this.job.command));
    this.find(".link").addEventListener("click", (event) => {
      if (navigator.clipboard) event.preventDefault();
      copy(event.target, new URL(this.job.link, location.href).href);
    });
    this.state("Sending …");
    this.buttons(false);
  }

  get drawing() { return this.entry.path.endsWith("images"); }

  // Ask for a request that the server may have already; send it if it does not.
  async begin(fresh) {
    try {
      let reply = fresh ? null : await fetch(`/v1/jobs/${this.entry.id}`);
      if (!reply || reply.status === 404) {
        // Finished once, and forgotten since: nothing that anybody waits for.
        if (!fresh && this.entry.done) return this.results.remove(this);
        const body = JSON.stringify({ ...this.entry.body, id: this.entry.id });
        reply = await fetch(this.entry.path, { method: "POST", body, headers: { "Content-Type": "application/json" } });
      }
      if (reply.status === 429) return this.later(Number(reply.headers.get("Retry-After")) || 5, "Many wait already");
      const found = await reply.json();
      if (!reply.ok) return this.fail(found.error);
      this.show(found);
      this.results.changed();
    } catch {
      this.later(3, "The server does not answer");
    }
  }

  later(seconds, why) {
    if (!this.item.isConnected) return;
    this.state(seconds > 0 ? `${why}; tries again in ${seconds} s` : "Sending …");
    setTimeout(() => (seconds > 0 ? this.later(seconds - 1, why) : this.begin(false)), 1000);
  }

  fail(why) {
    this.item.classList.add("failed");
    this.state(why);
    this.buttons(true);
    this.entry.done = true;
    this.find("progress").hidden = true;
    this.results.changed();
  }

  // Show a request as the server tells of it.
  show(job) {
    const first = !this.job;
    this.job = job;
    if (first) this.lay();
    if (this.drawing) {
      this.find(".link").href = job.link;
      this.find(".manifest").href = job.manifest;
    }
    job.images.forEach((image, k) => image.url && this.image(k, image.url));
    this.progress(job);
    if (!settled(job.status)) return;
    this.events?.close();
    if (job.status === "failed") return this.fail(job.error);
    this.entry.done = true;
    this.item.classList.add("done");
    this.find("progress").hidden = true;
    const near = job.psnr === undefined ? "" : `PSNR ${job.psnr.toFixed(2)} dB · SSIM ${job.ssim.toFixed(3)} · ${job.codes} of ${this.results.about.codes} codes`;
    this.state(job.status === "cancelled" ? "Cancelled" : near);
    this.buttons(true);
    this.results.changed();
  }

  // Make the frames, and say what was asked for.
  lay() {
    const { request, images } = this.job, names = this.results.about.classes;
    const plain = (value) => Number(value.toPrecision(6));
    this.find("h2").textContent = !this.drawing ? "Reconstruction" : request.classes.map((label) => names[label]).join(", ");
    this.find(".about").textContent = !this.drawing ? "" : [
      `seed ${request.seed}`, `guidance ${plain(request.guidance_scale)}`, `temperature ${plain(request.temperature)}`,
      request.top_k ? `top-k ${request.top_k}` : "", request.top_p < 1 ? `top-p ${plain(request.top_p)}` : "", request.photo ? "a photo, in part" : "",
    ].filter(Boolean).join(" · ");
    const { width, height, tokens, grid } = this.results.about;
    this.item.classList.add(Math.max(width, height) < 128 ? "small" : "large");
    this.drawn = images.map(() => 0);
    // Tokens without places are laid out as a square.
    const side = Math.ceil(Math.sqrt(tokens));
    [this.rows, this.columns] = grid ?? [side, side];
    this.figures = images.map((image) => {
      const figure = document.getElementById("image").content.firstElementChild.cloneNode(true);
      const canvas = figure.querySelector("canvas");
      canvas.width = this.columns * Math.max(1, Math.round(width / this.columns));
      canvas.height = this.rows * Math.max(1, Math.round(height / this.rows));
      figure.querySelector(".name").textContent = this.drawing ? `No. ${image.number}` : image.name;
      figure.querySelector(".edit").hidden = !grid;
      figure.querySelector(".edit").addEventListener("click", () => this.results.act.edit(image));
      return figure;
    });
    this.find(".images").replaceChildren(...this.figures);
    if (request.mask) this.ground(request);
  }

  // Where a photo is edited: what is kept of it, around the tokens that are drawn.
  async ground({ photo, mask }) {
    const { width, height } = this.results.about, patch = width / this.columns;
    try {
      const white = await pixels(`data:image/png;base64,${mask.replaceAll("-", "+").replaceAll("_", "/")}`, width, height);
      const kept = await pixels(`/v1/photos/${photo}.png`, width, height);
      this.fresh = new Set();
      for (let i = 0; i < width * height; i++) {
        if (white.data[4 * i] < 128) continue;
        this.fresh.add(Math.floor(i / width / patch) * this.columns + Math.floor((i % width) / patch));
        kept.data[4 * i + 3] = 0;
      }
      const layer = new OffscreenCanvas(width, height);
      layer.getContext("2d").putImageData(kept, 0, 0);
      for (const figure of this.figures) {
        const canvas = figure.querySelector("canvas");
        canvas.getContext("2d").drawImage(layer, 0, 0, canvas.width, canvas.height);
      }
    } catch {
      // The photo is not kept any more; its edits are.
    }
  }

  follow() {
    if (this.events) return;
    this.events = new EventSource(`/v1/jobs/${this.job.id}/events`);
    const on = (name, act) => this.events.addEventListener(name, (event) => act(JSON.parse(event.data)));
    on("state", (state) => this.progress(Object.assign(this.job, state)));
    on("tokens", ({ image, first, tokens }) => this.tokens(image, first, tokens));
    on("preview", ({ image, tokens, uri }) => this.preview(image, tokens, uri));
    on("image", ({ image, url }) => this.image(image, url));
    on("end", (job) => this.show(job));
    this.events.addEventListener("error", () => {
      if (settled(this.job.status)) return;
      // The server may have been started anew, without knowing the request: send it again.
      this.events.close();
      this.events = null;
      this.later(2, "The connection was lost");
    });
  }

  tokens(k, first, tokens) {
    const draw = this.figures[k].querySelector("canvas").getContext("2d");
    const across = draw.canvas.width / this.columns, down = draw.canvas.height / this.rows;
    tokens.forEach((token, i) => {
      // Those that are given show as the photo that they are of.
      if (this.fresh && !this.fresh.has(first + i)) return;
      const place = first + i, colour = this.results.colours.subarray(3 * token, 3 * token + 3);
      draw.fillStyle = `rgb(${colour.join(" ")})`;
      draw.fillRect((place % this.columns) * across, Math.floor(place / this.columns) * down, across, down);
    });
    this.drawn[k] = first + tokens.length;
    this.progress(this.job);
  }

  async preview(k, tokens, uri) {
    const image = new Image();
    image.src = uri;
    await image.decode().catch(() => {});
    const canvas = this.figures[k].querySelector("canvas"), rows = Math.floor(tokens / this.columns) / this.rows;
    const context = canvas.getContext("2d");
    // Only the part that is drawn: what stands below is made of tokens that are none yet.
    context.drawImage(image, 0, 0, image.width, image.height * rows, 0, 0, canvas.width, canvas.height * rows);
  }

  image(k, url) {
    const figure = this.figures[k];
    if (figure.classList.contains("done")) return;
    figure.classList.add("done");
    const about = this.job.images[k], image = new Image();
    about.url = url;
    image.src = url;
    image.alt = this.drawing ? `${about.name}, number ${about.number}, seed ${about.seed}` : about.name;
    figure.querySelector(".frame").append(image);
    const save = figure.querySelector(".save");
    save.href = url;
    save.download = this.drawing ? `${about.name}-seed${about.seed}-${about.number}.png` : `${about.name}.png`;
    save.setAttribute("aria-label", `Save ${image.alt}`);
    figure.querySelector(".edit").setAttribute("aria-label", `Edit ${image.alt}`);
    this.drawn[k] = this.results.about.tokens;
    this.progress(this.job);
  }

  progress({ status, before }) {
    if (settled(status)) return;
    const share = this.drawn.reduce((sum, one) => sum + one, 0) / this.drawn.length / this.results.about.tokens;
    this.find("progress").value = share;
    const ahead = before === 1 ? "one request before it" : `${before} requests before it`;
    const parts = this.drawing ? `Drawing, ${Math.round(share * 100)} %` : "Encoding and decoding";
    this.state(status === "running" ? parts : before ? `Waiting, ${ahead}` : "Waiting");
  }

  state(text) { if (this.find(".standing").textContent !== text) this.find(".standing").textContent = text; }

  buttons(ended) {
    const done = ended && this.job && this.drawing;
    for (const name of ["link", "again", "take", "manifest", "command"]) this.find(`.${name}`).hidden = !done;
    this.find(".cancel").hidden = ended;
    this.find(".remove").hidden = !ended;
  }

  async cancel() {
    if (this.entry.done) return;
    this.entry.done = true;
    const reply = await fetch(`/v1/jobs/${this.entry.id}`, { method: "DELETE" }).catch(() => null);
    if (reply?.ok && this.item.isConnected) this.show(await reply.json());
  }
}

async function pixels(url, width, height) {
  const image = await picture(url), draw = new OffscreenCanvas(width, height).getContext("2d");
  draw.drawImage(image, 0, 0, width, height);
  return draw.getImageData(0, 0, width, height);
}

async function copy(button, text) {
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    // Without a clipboard (a page that is not from this machine, without encryption): to be copied by hand.
    prompt("Copy:", text);
  }
  setTimeout(() => { button.textContent = before; }, 1500);
}
