// The photo on the easel: what is painted is drawn anew. The mask is kept in the image's own pixels.

const accent = () => getComputedStyle(document.documentElement).getPropertyValue("--accent");

export class Brush {
  constructor(about) {
    this.width = about.width;
    this.height = about.height;
    [this.rows, this.columns] = about.grid ?? [1, 1];
    this.canvas = document.getElementById("canvas");
    this.says = document.getElementById("brush-says");
    this.size = document.getElementById("brush-size");
    this.scale = Math.max(1, Math.ceil(640 / this.width));
    this.canvas.width = this.width * this.scale;
    this.canvas.height = this.height * this.scale;
    this.mask = new Uint8Array(this.width * this.height);
    this.before = [];
    this.erasing = false;
    this.painting = true; // false while a photo is only looked at
    this.patch = this.width / this.columns; // side of a token's patch, in pixels
    this.at = { x: (Math.floor(this.columns / 2) + 0.5) * this.patch, y: (Math.floor(this.rows / 2) + 0.5) * this.patch };
    this.last = null;
    this.keyboard = false;
    const on = (name, act) => this.canvas.addEventListener(name, act);
    on("pointerdown", (event) => this.down(event));
    on("pointermove", (event) => this.last && this.stroke(this.place(event)));
    on("pointerup", () => this.up());
    on("pointercancel", () => this.up());
    on("keydown", (event) => this.key(event));
    on("focus", () => { this.keyboard = this.canvas.matches(":focus-visible"); this.show(); });
    on("blur", () => { this.keyboard = false; this.show(); });
    for (const name of ["brush", "eraser"]) {
      document.getElementById(name).addEventListener("click", () => this.erase(name === "eraser"));
    }
    document.getElementById("undo").addEventListener("click", () => this.undo());
    document.getElementById("clear").addEventListener("click", () => this.fill(() => 0));
    for (const button of document.querySelectorAll("[data-half]")) {
      button.addEventListener("click", () => this.part(button.dataset.half));
    }
  }

  // Show a photo; with the mask of a link, painted where that is white.
  async load(url, mask) {
    this.photo = await picture(url);
    this.before = [];
    this.mask.fill(0);
    if (mask) {
      const draw = blank(this.width, this.height);
      draw.drawImage(await picture(mask), 0, 0);
      draw.getImageData(0, 0, this.width, this.height).data.forEach((value, i) => { if (i % 4 === 0) this.mask[i / 4] = value > 127; });
    }
    this.show();
  }

  // The mask as a canvas of the image's size: one colour where it is painted, another elsewhere.
  drawn(painted, elsewhere) {
    const draw = blank(this.width, this.height), data = draw.createImageData(this.width, this.height);
    this.mask.forEach((is, i) => data.data.set(is ? painted : elsewhere, 4 * i));
    draw.putImageData(data, 0, 0);
    return draw.canvas;
  }

  // The mask as a PNG in base64: white where it is painted.
  async text() {
    const blob = await this.drawn([255, 255, 255, 255], [0, 0, 0, 255]).convertToBlob();
    const bytes = new Uint8Array(await blob.arrayBuffer());
    return btoa(bytes.reduce((text, byte) => text + String.fromCharCode(byte), ""));
  }

  // Tokens that are drawn anew: those of whose patch any pixel is painted.
  touched() {
    const found = new Set();
    this.mask.forEach((is, i) => {
      const row = Math.floor(i / this.width / this.patch), column = Math.floor((i % this.width) / this.patch);
      if (is) found.add(row * this.columns + column);
    });
    return found;
  }

  remember() {
    this.before.push(this.mask.slice());
    if (this.before.length > 50) this.before.shift();
  }

  undo() {
    const before = this.before.pop();
    if (before) this.mask = before;
    this.show();
  }

  erase(on) {
    this.erasing = on;
    document.getElementById("brush").setAttribute("aria-pressed", !on);
    document.getElementById("eraser").setAttribute("aria-pressed", on);
  }

  // Paint the pixels for which a rule says so.
  fill(rule) {
    this.remember();
    this.mask.forEach((_, i) => { this.mask[i] = rule(i % this.width, Math.floor(i / this.width)); });
    this.show();
  }

  part(which) {
    const within = (one, side) => one >= side / 4 && one < (side / 4) * 3;
    const inside = (x, y) => within(x, this.width) && within(y, this.height);
    this.fill({
      right: (x) => x >= this.width / 2,
      bottom: (x, y) => y >= this.height / 2,
      inside,
      outside: (x, y) => !inside(x, y),
    }[which]);
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return { x: ((event.clientX - box.left) / box.width) * this.width, y: ((event.clientY - box.top) / box.height) * this.height };
  }

  down(event) {
    if (!this.photo || !this.painting || event.button) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.keyboard = false;
    this.remember();
    this.last = this.place(event);
    this.stroke(this.last);
  }

  up() {
    this.last = null;
    this.tell();
  }

  // Paint pixels by their middles, not with a canvas's soft edges: a pixel is painted or it is not.
  stroke(to) {
    const from = this.last ?? to, dx = to.x - from.x, dy = to.y - from.y, length = dx * dx + dy * dy || 1;
    const radius = Math.max(Number(this.size.value) / 2, 0.71), value = this.erasing ? 0 : 1;
    const low = (a, b) => Math.max(0, Math.floor(Math.min(a, b) - radius));
    const high = (a, b, side) => Math.min(side - 1, Math.ceil(Math.max(a, b) + radius));
    for (let y = low(from.y, to.y); y <= high(from.y, to.y, this.height); y++) {
      for (let x = low(from.x, to.x); x <= high(from.x, to.x, this.width); x++) {
        const along = Math.min(1, Math.max(0, ((x + 0.5 - from.x) * dx + (y + 0.5 - from.y) * dy) / length));
        const away = Math.hypot(x + 0.5 - from.x - along * dx, y + 0.5 - from.y - along * dy);
        if (away <= radius) this.mask[y * this.width + x] = value;
      }
    }
    if (this.last) this.last = to;
    this.show();
  }

  key(event) {
    if (!this.painting) return;
    const step = event.shiftKey ? 1 : this.patch;
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    const inside = (value, side) => Math.min(side - 0.5, Math.max(0.5, value));
    this.keyboard = true;
    if (event.key in moves) {
      const [x, y] = moves[event.key];
      this.at = { x: inside(this.at.x + x, this.width), y: inside(this.at.y + y, this.height) };
    } else if (event.key === " ") {
      this.remember();
      this.stroke(this.at);
    } else if (event.key === "e" || event.key === "E") this.erase(!this.erasing);
    else if (event.key === "[") this.size.stepDown();
    else if (event.key === "]") this.size.stepUp();
    else if (event.key === "z" && (event.ctrlKey || event.metaKey)) this.undo();
    else return;
    event.preventDefault();
    this.show();
    this.tell();
  }

  tell() {
    const where = this.keyboard ? `Column ${Math.ceil(this.at.x)}, row ${Math.ceil(this.at.y)}. ` : "";
    const all = this.rows * this.columns, count = this.painting ? this.touched().size : 0;
    this.says.textContent = this.painting ? `${where}${count} of ${all} tokens are drawn anew.` : "";
  }

  show() {
    if (!this.photo) return;
    const draw = this.canvas.getContext("2d"), { width, height } = this.canvas;
    draw.imageSmoothingEnabled = false;
    draw.drawImage(this.photo, 0, 0, width, height);
    if (!this.painting) return this.tell();
    const veil = this.drawn([0, 0, 0, 255], [0, 0, 0, 0]), tint = veil.getContext("2d");
    tint.globalCompositeOperation = "source-in";
    tint.fillStyle = accent();
    tint.fillRect(0, 0, this.width, this.height);
    draw.globalAlpha = 0.72;
    draw.drawImage(veil, 0, 0, width, height);
    draw.globalAlpha = 1;
    const patch = width / this.columns, touched = this.touched();
    draw.strokeStyle = accent();
    draw.lineWidth = Math.max(1, width / 400);
    for (const token of touched) {
      draw.strokeRect((token % this.columns) * patch, Math.floor(token / this.columns) * patch, patch, patch);
    }
    if (this.keyboard) this.cursor(draw);
    this.tell();
  }

  cursor(draw) {
    const { x, y } = this.at, scale = this.scale;
    for (const [width, colour] of [[5, "#000"], [2, "#fff"]]) {
      draw.lineWidth = width;
      draw.strokeStyle = colour;
      draw.beginPath();
      draw.arc(x * scale, y * scale, (Number(this.size.value) / 2) * scale, 0, 7);
      draw.stroke();
    }
  }
}

const blank = (width, height) => new OffscreenCanvas(width, height).getContext("2d");

export async function picture(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  return image;
}
