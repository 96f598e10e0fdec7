// The photo on the easel: what is painted is drawn anew. The mask is kept in the image's own pixels.

const accent = () => getComputedStyle(document.documentElement).getPropertyValue("--accent");

export class Brush {
  constructor(about) {
    this.side = about.image_size;
    this.patches = about.side;
    this.canvas = document.getElementById("canvas");
    this.says = document.getElementById("brush-says");
    this.size = document.getElementById("brush-size");
    this.scale = Math.max(1, Math.ceil(640 / this.side));
    this.canvas.width = this.canvas.height = this.side * this.scale;
    this.mask = new OffscreenCanvas(this.side, this.side).getContext("2d", { willReadFrequently: true });
    this.before = [];
    this.erasing = false;
    this.painting = true; // false while a photo is only looked at
    this.at = { x: this.side / 2, y: this.side / 2 };
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
    document.getElementById("clear").addEventListener("click", () => this.fill(0, 0, 0, 0));
    for (const button of document.querySelectorAll("[data-half]")) {
      button.addEventListener("click", () => this.half(button.dataset.half));
    }
  }

  // Show a photo; with the mask of a link, painted where that is white.
  async load(url, mask) {
    this.photo = await picture(url);
    this.before = [];
    this.mask.clearRect(0, 0, this.side, this.side);
    if (mask) {
      this.mask.drawImage(await picture(mask), 0, 0);
      const data = this.mask.getImageData(0, 0, this.side, this.side);
      for (let i = 0; i < data.data.length; i += 4) data.data[i + 3] = data.data[i];
      this.mask.putImageData(data, 0, 0);
    }
    this.show();
  }

  // Which pixels are painted, as one array of booleans.
  painted() {
    const { data } = this.mask.getImageData(0, 0, this.side, this.side);
    return Array.from({ length: this.side ** 2 }, (_, i) => data[4 * i + 3] > 127);
  }

  // The mask as a PNG in base64: white where it is painted.
  async text() {
    const whole = new OffscreenCanvas(this.side, this.side).getContext("2d");
    const data = whole.createImageData(this.side, this.side);
    this.painted().forEach((is, i) => data.data.set(is ? [255, 255, 255, 255] : [0, 0, 0, 255], 4 * i));
    whole.putImageData(data, 0, 0);
    const bytes = new Uint8Array(await (await whole.canvas.convertToBlob()).arrayBuffer());
    return btoa(bytes.reduce((text, byte) => text + String.fromCharCode(byte), ""));
  }

  // Tokens that are drawn anew: those of whose patch any pixel is painted.
  touched() {
    const patch = this.side / this.patches;
    const found = new Set();
    this.painted().forEach((is, i) => {
      if (is) found.add(Math.floor(i / this.side / patch) * this.patches + Math.floor((i % this.side) / patch));
    });
    return found;
  }

  remember() {
    this.before.push(this.mask.getImageData(0, 0, this.side, this.side));
    if (this.before.length > 50) this.before.shift();
  }

  undo() {
    const before = this.before.pop();
    if (before) this.mask.putImageData(before, 0, 0);
    this.show();
  }

  erase(on) {
    this.erasing = on;
    document.getElementById("brush").setAttribute("aria-pressed", !on);
    document.getElementById("eraser").setAttribute("aria-pressed", on);
  }

  fill(...box) {
    this.remember();
    this.mask.clearRect(0, 0, this.side, this.side);
    this.mask.fillStyle = "#fff";
    this.mask.fillRect(...box);
    this.show();
  }

  half(which) {
    const half = this.side >> 1, quarter = this.side >> 2;
    if (which === "right") return this.fill(half, 0, half, this.side);
    if (which === "bottom") return this.fill(0, half, this.side, half);
    if (which === "inside") return this.fill(quarter, quarter, half, half);
    this.fill(0, 0, this.side, this.side);
    this.mask.clearRect(quarter, quarter, half, half);
    this.show();
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return { x: ((event.clientX - box.left) / box.width) * this.side, y: ((event.clientY - box.top) / box.height) * this.side };
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

  stroke(to) {
    const mask = this.mask, from = this.last ?? to;
    mask.globalCompositeOperation = this.erasing ? "destination-out" : "source-over";
    mask.strokeStyle = "#fff";
    mask.lineCap = mask.lineJoin = "round";
    mask.lineWidth = Number(this.size.value);
    mask.beginPath();
    mask.moveTo(from.x, from.y);
    mask.lineTo(to.x + 0.01, to.y);
    mask.stroke();
    mask.globalCompositeOperation = "source-over";
    if (this.last) this.last = to;
    this.show();
  }

  key(event) {
    if (!this.painting) return;
    const step = event.shiftKey ? 1 : this.side / this.patches;
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    const inside = (value) => Math.min(this.side - 0.5, Math.max(0.5, value));
    this.keyboard = true;
    if (event.key in moves) {
      const [x, y] = moves[event.key];
      this.at = { x: inside(this.at.x + x), y: inside(this.at.y + y) };
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
    const all = this.patches ** 2, count = this.painting ? this.touched().size : 0;
    this.says.textContent = this.painting ? `${where}${count} of ${all} tokens are drawn anew.` : "";
  }

  show() {
    if (!this.photo) return;
    const draw = this.canvas.getContext("2d"), scale = this.scale, all = this.side * scale;
    draw.imageSmoothingEnabled = false;
    draw.drawImage(this.photo, 0, 0, all, all);
    if (!this.painting) return this.tell();
    // The mask's colour, through which the photo is seen.
    const tint = new OffscreenCanvas(this.side, this.side).getContext("2d");
    tint.drawImage(this.mask.canvas, 0, 0);
    tint.globalCompositeOperation = "source-in";
    tint.fillStyle = accent();
    tint.fillRect(0, 0, this.side, this.side);
    draw.globalAlpha = 0.72;
    draw.drawImage(tint.canvas, 0, 0, all, all);
    draw.globalAlpha = 1;
    const patch = all / this.patches, touched = this.touched();
    draw.strokeStyle = accent();
    draw.lineWidth = Math.max(1, all / 400);
    for (const token of touched) {
      draw.strokeRect((token % this.patches) * patch, Math.floor(token / this.patches) * patch, patch, patch);
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

export async function picture(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  return image;
}
