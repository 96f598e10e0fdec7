// The page: what to do, with which settings, and where the requests go.

import { Brush } from "/page/brush.js";
import { ClassPicker } from "/page/classes.js";
import { PhotoPart } from "/page/photos.js";
import { Results } from "/page/results.js";

const about = JSON.parse(document.body.dataset.about);
const form = document.getElementById("settings");
const by = (id) => document.getElementById(id);
const SETTINGS = Object.keys(about.defaults);
const DIALS = SETTINGS.filter((name) => by(`${name}-range`));
const VERBS = { draw: "Draw", edit: "Draw anew", rebuild: "Reconstruct" };

const picker = new ClassPicker(about.classes);
const brush = new Brush(about);
const photos = new PhotoPart(about, brush, says);
const results = new Results(about, { take, edit: async (image) => {
  mode("edit");
  picker.choose(image.class ?? picker.label ?? 0);
  await photos.send(await (await fetch(image.url)).blob());
  by("photo-part").scrollIntoView({ block: "nearest", behavior: "smooth" });
  brush.canvas.focus({ preventScroll: true });
} });

function says(text, wrong = false) {
  by("says").textContent = text;
  by("says").classList.toggle("wrong", wrong);
}

function mode(wanted) {
  if (wanted) form.elements.mode.value = wanted;
  const now = form.elements.mode.value;
  for (const part of document.querySelectorAll("[data-modes]")) part.hidden = !part.dataset.modes.split(" ").includes(now);
  form.className = now;
  by("class").disabled = now === "rebuild";
  brush.painting = now === "edit";
  brush.canvas.tabIndex = now === "edit" ? 0 : -1;
  brush.show();
  by("go").textContent = VERBS[now];
  says("");
  return now;
}

// Fill the settings in; those that are not given stay as they are.
function fill(values) {
  for (const name of [...SETTINGS, "first", "count"]) {
    if (values[name] === undefined || values[name] === null) continue;
    by(name).value = values[name];
    if (by(`${name}-range`)) by(`${name}-range`).value = values[name];
  }
}

function take(request) {
  mode(request.photo ? "edit" : "draw");
  fill(request);
  picker.choose(request.classes[0]);
  by("more").open = true;
  by("class").focus();
}

// What the form asks for, or null where it cannot be asked so; the reason is shown.
async function wish(now) {
  if (now !== "draw" && !photos.id) return says("Choose a photo first.", true);
  if (now === "rebuild") return { photo: photos.id };
  const label = picker.label;
  if (label === null) {
    by("class").focus();
    return says(`No class “${by("class").value}”.`, true);
  }
  const body = { classes: [label] };
  for (const name of [...DIALS, "count", "seed", "first"]) body[name] = Number(by(name).value);
  body.guidance_schedule = by("guidance_schedule").value;
  if (now === "draw") return body;
  const count = brush.touched().size;
  if (!count || count === about.tokens) {
    brush.canvas.focus();
    return says(count ? "Everything is painted: leave something to keep." : "Paint what is to be drawn anew.", true);
  }
  return { ...body, photo: photos.id, mask: await brush.text() };
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const now = mode(), body = await wish(now);
  if (!body) return;
  results.send(now === "rebuild" ? "/v1/reconstructions" : "/v1/images", body);
});
form.addEventListener("change", (event) => event.target.name === "mode" && mode());
// A field that is wrong may be in the part that is folded.
form.addEventListener("invalid", () => { by("more").open = true; }, true);
for (const name of DIALS) {
  by(`${name}-range`).addEventListener("input", (event) => { by(name).value = event.target.value; });
  by(name).addEventListener("input", (event) => { by(`${name}-range`).value = event.target.value; });
}
by("dice").addEventListener("click", () => { by("seed").value = crypto.getRandomValues(new Uint32Array(1))[0] >>> 1; });
by("reset").addEventListener("click", () => fill({ ...about.defaults, first: 0 }));
for (const [name, low, high] of [["guidance_scale", 0, 100], ["guidance_power", 0.01, 100], ["temperature", 0, 100], ["top_k", 0, 2 ** 31 - 1], ["top_p", 0.0001, 1]]) {
  Object.assign(by(name), { min: low, max: high });
}
document.body.classList.toggle("small", Math.max(about.width, about.height) < 128);
document.body.style.setProperty("--shape", `${about.width} / ${about.height}`);

// A link has all settings. It draws at once, unless another site sent us here.
async function open(link) {
  if (!link.has("classes")) return;
  history.replaceState(null, "", "/");
  const values = Object.fromEntries(link);
  fill(values);
  const labels = values.classes.split(",").map(Number);
  picker.choose(labels[0] in about.classes ? labels[0] : 0);
  if (values.photo) {
    mode("edit");
    const mask = (values.mask ?? "").replaceAll("-", "+").replaceAll("_", "/");
    try {
      await photos.show(values.photo, `data:image/png;base64,${mask}`);
    } catch (error) {
      return says(error.message, true);
    }
  }
  if ("foreign" in document.body.dataset) return says("These settings came with a link from another page.");
  const body = {};
  for (const [name, text] of link) {
    if (["photo", "mask", "guidance_schedule"].includes(name)) body[name] = text;
    else if (name !== "classes") body[name] = Number(text);
  }
  results.send("/v1/images", { ...body, classes: labels });
}

fill({ ...about.defaults, first: 0 });
mode();
open(new URLSearchParams(location.search)).catch((error) => says(error.message, true));
