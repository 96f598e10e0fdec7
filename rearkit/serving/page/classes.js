// The class by name or number: a text field with a list of those that fit (the combobox pattern of WAI-ARIA).

const MOST = 60; // rows in the list

export class ClassPicker {
  constructor(names) {
    this.names = names;
    this.lowered = names.map((name) => name.toLowerCase());
    this.input = document.getElementById("class");
    this.list = document.getElementById("class-list");
    this.numbered = names.every((name, i) => name === String(i));
    this.found = [];
    this.at = -1;
    this.input.addEventListener("input", () => this.open(this.input.value));
    this.input.addEventListener("focus", () => this.input.select());
    this.input.addEventListener("click", () => this.open(""));
    this.input.addEventListener("blur", () => this.close());
    addEventListener("scroll", () => this.list.hidden || this.put(), { capture: true, passive: true });
    this.input.addEventListener("keydown", (event) => this.key(event));
    // Before the field loses the focus, which would close the list.
    this.list.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      const row = event.target.closest("[data-label]");
      if (row) this.choose(Number(row.dataset.label));
    });
    this.choose(0);
  }

  // Number of the class in the field, or null if it names none.
  get label() {
    const text = this.input.value.trim().toLowerCase();
    if (this.names[this.chosen]?.toLowerCase() === text) return this.chosen;
    const exact = this.lowered.indexOf(text);
    if (exact >= 0) return exact;
    const number = /^\d+$/.test(text) ? Number(text) : NaN;
    if (number < this.names.length) return number;
    const found = this.matching(text);
    return text && found.length === 1 ? found[0] : null;
  }

  choose(label) {
    this.chosen = label;
    this.input.value = this.names[label];
    this.close();
  }

  // Those whose number it is, then those that begin with the text, with a word that does, that contain it.
  matching(text) {
    const wanted = text.trim().toLowerCase();
    if (!wanted) return this.names.map((_, i) => i);
    const rank = (name, i) => {
      if (String(i) === wanted) return 0;
      const place = name.indexOf(wanted);
      if (place < 0) return 9;
      return place === 0 ? 1 : /\W/.test(name[place - 1]) ? 2 : 3;
    };
    return this.lowered.map((name, i) => [rank(name, i), i]).filter(([r]) => r < 9)
      .sort((a, b) => a[0] - b[0] || a[1] - b[1]).map(([, i]) => i);
  }

  open(text) {
    this.found = this.matching(text);
    this.at = text && this.found.length ? 0 : Math.max(0, this.found.indexOf(this.chosen));
    const first = Math.max(0, Math.min(this.at - 5, this.found.length - MOST));
    const rows = this.found.slice(first, first + MOST).map((label) => {
      const row = document.createElement("li");
      row.id = `class-${label}`;
      row.role = "option";
      row.dataset.label = label;
      row.append(this.names[label]);
      if (!this.numbered) row.append(Object.assign(document.createElement("span"), { textContent: label }));
      return row;
    });
    if (!rows.length) {
      const row = document.createElement("li");
      row.className = "none";
      row.textContent = "No class of this name";
      rows.push(row);
    }
    this.list.replaceChildren(...rows);
    this.list.hidden = false;
    this.put();
    this.input.setAttribute("aria-expanded", "true");
    this.mark();
  }

  // Below the field, or above it where there is more room.
  put() {
    const box = this.input.getBoundingClientRect(), below = innerHeight - box.bottom - 12, above = box.top - 12;
    const up = below < 160 && above > below;
    Object.assign(this.list.style, {
      left: `${box.left}px`, width: `${box.width}px`, maxHeight: `${Math.min(320, up ? above : below)}px`,
      top: up ? "auto" : `${box.bottom + 3}px`, bottom: up ? `${innerHeight - box.top + 3}px` : "auto",
    });
  }

  close() {
    this.list.hidden = true;
    this.input.setAttribute("aria-expanded", "false");
    this.input.removeAttribute("aria-activedescendant");
  }

  mark() {
    for (const row of this.list.children) {
      const here = row.dataset.label === String(this.found[this.at]);
      row.setAttribute("aria-selected", here);
      if (!here) continue;
      this.input.setAttribute("aria-activedescendant", row.id);
      // Not scrollIntoView, which would move the page, too.
      const past = row.offsetTop + row.offsetHeight - this.list.clientHeight;
      if (row.offsetTop < this.list.scrollTop) this.list.scrollTop = row.offsetTop;
      else if (past > this.list.scrollTop) this.list.scrollTop = past;
    }
  }

  key(event) {
    const closed = this.list.hidden;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (closed) return this.open("");
      const shown = Math.min(this.list.children.length, this.found.length);
      const first = this.found.indexOf(Number(this.list.children[0].dataset.label));
      const step = event.key === "ArrowDown" ? 1 : -1;
      this.at = first + ((this.at - first + step + shown) % Math.max(1, shown));
      this.mark();
    } else if (event.key === "Enter" && !closed) {
      event.preventDefault();
      if (this.found.length) this.choose(this.found[this.at]);
    } else if (event.key === "Escape" && !closed) {
      event.preventDefault();
      this.choose(this.chosen);
    } else if (event.key === "Tab" && !closed && this.found.length) {
      this.choose(this.found[this.at]);
    }
  }
}
