// History of the session: its drawings and opened pictures, kept when the page is loaded again in the same tab.

import { Drawing } from "./drawing.js";
import { element, plural } from "./elements.js";

const STORED = "studio.history";
const LIMIT = 60; // drawings; the oldest go, with the memory of their pictures

/** List of drawings, newest first. show: called with the drawing that is chosen. */
export class History {
  constructor(list, show) {
    Object.assign(this, { list, show, drawings: [], entries: new Map(), current: null });
  }

  /** Seed of the current drawing, or of the newest one that has a seed. */
  get lastSeed() {
    return [this.current, ...this.drawings].find((drawing) => drawing?.settings.seed !== undefined)?.settings.seed;
  }

  /** Add a drawing and choose it. */
  add(drawing) {
    this.drawings.unshift(drawing);
    const image = element("img", { alt: "" });
    const text = element("span", { className: "entry-text" });
    const button = element("button", { type: "button", className: "entry" }, image, text);
    const entry = element("li", {}, button);
    button.addEventListener("click", () => this.choose(drawing));
    this.list.prepend(entry);
    this.entries.set(drawing, { entry, button, image, text });
    for (const old of this.drawings.splice(LIMIT)) this.remove(old);
    this.choose(drawing);
  }

  remove(drawing) {
    this.entries.get(drawing)?.entry.remove();
    this.entries.delete(drawing);
    drawing.dispose();
  }

  choose(drawing) {
    this.current = drawing;
    for (const [each, { button }] of this.entries) {
      button.ariaCurrent = each === drawing ? "true" : null;
    }
    this.show(drawing);
    this.update(drawing);
  }

  /** Show what changed in a drawing, and keep it. */
  update(drawing) {
    const parts = this.entries.get(drawing);
    if (!parts) return;
    const first = drawing.pictures.find((picture) => picture.url);
    if (first && parts.image.src !== first.url) parts.image.src = first.url;
    parts.button.classList.toggle("running", drawing.running);
    const count = drawing.running ? "drawing" : drawing.file ? "opened" : plural(drawing.pictures.length, "picture");
    const { edit } = drawing.settings;
    const title = element("span", { className: "entry-title" }, drawing.title);
    parts.text.replaceChildren(title, element("small", {}, edit ? `${edit.kind}, ${count}` : count));
    this.save();
  }

  save() {
    sessionStorage.setItem(STORED, JSON.stringify(this.drawings.map((each) => each.save())));
  }

  /** Show the drawings that this tab had before the page was loaded again. */
  restore(grid, listeners) {
    const stored = JSON.parse(sessionStorage.getItem(STORED) ?? "[]");
    for (const saved of stored.reverse()) this.add(Drawing.restore(saved, grid, listeners));
  }
}
