// A photo of the user's: chosen, dropped or pasted, sent to the server, shown on the easel.

export class PhotoPart {
  constructor(about, brush, says) {
    this.about = about;
    this.brush = brush;
    this.says = says;
    this.id = null;
    const file = document.getElementById("file");
    const drop = document.getElementById("photo-part");
    file.addEventListener("change", () => {
      if (file.files[0]) this.send(file.files[0]);
      file.value = "";
    });
    const inside = (on) => document.getElementById("drop").classList.toggle("over", on);
    drop.addEventListener("dragover", (event) => { event.preventDefault(); inside(true); });
    drop.addEventListener("dragleave", () => inside(false));
    drop.addEventListener("drop", (event) => {
      event.preventDefault();
      inside(false);
      if (event.dataTransfer.files[0]) this.send(event.dataTransfer.files[0]);
    });
    document.addEventListener("paste", (event) => {
      const found = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
      if (found && !drop.hidden) this.send(found);
    });
  }

  // Upload a file, or the content of an image that was drawn.
  async send(content) {
    if (content.size > this.about.limits.upload_bytes) {
      return this.says(`The file has ${(content.size / 2 ** 20).toFixed(0)} MB; at most ${this.about.limits.upload_bytes / 2 ** 20} are taken.`, true);
    }
    this.says("Sending the photo …");
    try {
      const reply = await fetch("/v1/photos", { method: "POST", body: content, headers: { "Content-Type": "application/octet-stream" } });
      const found = await reply.json();
      if (!reply.ok) throw new Error(found.error);
      await this.show(found.id);
      this.says("");
    } catch (error) {
      this.says(error.message, true);
    }
  }

  // Show a photo that the server has, as a link names it.
  async show(id, mask) {
    try {
      await this.brush.load(`/v1/photos/${id}.png`, mask);
    } catch {
      throw new Error("The photo of this link is not kept any more; choose it again, and the link works.");
    }
    this.id = id;
    document.getElementById("drop").hidden = true;
    document.getElementById("easel").hidden = false;
  }
}
