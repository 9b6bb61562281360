// Mask of an inpainting: brushed with a pointer or the keyboard, with undo and redo.

import { element } from "./elements.js";

const SCALE = 4; // canvas pixels along one pixel of the picture, for smooth edges
const COLOUR = "#12b3a6";

/** Mask on `canvas`. changed: called after each change. */
export class Mask {
  constructor(canvas, changed) {
    Object.assign(this, { canvas, changed, size: 4, strokes: [], undone: [], cursor: null });
    canvas.addEventListener("pointerdown", (event) => this.begin(event));
    canvas.addEventListener("pointermove", (event) => this.extend(event));
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { this.stroke = null; });
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("blur", () => this.moveCursor(null));
  }

  /** Begin an empty mask for a picture of width x height pixels. cell: pixels along one token. */
  start(width, height, cell) {
    Object.assign(this, { width, height, cell, strokes: [], undone: [], cursor: null, stroke: null });
    this.canvas.width = width * SCALE;
    this.canvas.height = height * SCALE;
    this.paint();
  }

  get canUndo() { return this.strokes.length > 0; }
  get canRedo() { return this.undone.length > 0; }

  /** Strokes since the last clear. */
  get visible() {
    return this.strokes.slice(this.strokes.findLastIndex((stroke) => stroke.clear) + 1);
  }

  get empty() { return this.visible.length === 0; }

  get radius() { return this.size * this.width / 64 / 2 + 0.5; }

  undo() {
    if (this.canUndo) this.undone.push(this.strokes.pop());
    this.paint();
  }

  redo() {
    if (this.canRedo) this.strokes.push(this.undone.pop());
    this.paint();
  }

  clear() {
    if (!this.empty) this.add({ clear: true });
  }

  add(stroke) {
    this.strokes.push(stroke);
    this.undone = [];
    this.paint();
  }

  position(event) {
    const box = this.canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width * this.width, (event.clientY - box.top) / box.height * this.height];
  }

  begin(event) {
    if (event.button !== 0) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.stroke = { radius: this.radius, points: [this.position(event)] };
    this.add(this.stroke);
  }

  extend(event) {
    if (!this.stroke) return;
    for (const each of event.getCoalescedEvents?.() ?? [event]) this.stroke.points.push(this.position(each));
    this.paint();
  }

  key(event) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const step = steps[event.key];
    if (step) {
      const [x, y] = this.cursor ?? [this.width / 2, this.height / 2];
      const inside = (value, limit) => Math.min(Math.max(value, 0), limit);
      this.moveCursor([inside(x + step[0] * this.cell, this.width), inside(y + step[1] * this.cell, this.height)]);
      if (event.shiftKey) this.add({ radius: this.radius, points: [[x, y], this.cursor] });
    } else if (event.key === " " || event.key === "Enter") {
      this.cursor ??= [this.width / 2, this.height / 2];
      this.add({ radius: this.radius, points: [this.cursor] });
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  }

  moveCursor(position) {
    this.cursor = position;
    this.paint();
  }

  paint() {
    const context = this.canvas.getContext("2d");
    context.setTransform(SCALE, 0, 0, SCALE, 0, 0);
    context.clearRect(0, 0, this.width, this.height);
    drawStrokes(context, this.visible, COLOUR);
    this.paintOutside(context);
    if (this.cursor) this.paintCursor(context, ...this.cursor);
    this.changed();
  }

  /** Cover what is outside of the centre square: edits leave it out. */
  paintOutside(context) {
    const side = Math.min(this.width, this.height);
    context.fillStyle = "#000";
    context.beginPath();
    context.rect(0, 0, this.width, this.height);
    context.rect((this.width - side) / 2, (this.height - side) / 2, side, side);
    context.fill("evenodd");
  }

  paintCursor(context, x, y) {
    for (const [colour, width] of [["#000", 1.6], ["#fff", 0.8]]) {
      Object.assign(context, { strokeStyle: colour, lineWidth: width * this.width / 128 });
      context.beginPath();
      context.arc(x, y, this.radius, 0, 2 * Math.PI);
      context.moveTo(x - this.radius / 2, y);
      context.lineTo(x + this.radius / 2, y);
      context.moveTo(x, y - this.radius / 2);
      context.lineTo(x, y + this.radius / 2);
      context.stroke();
    }
  }

  /** Return the mask as a PNG of the picture's size: white is drawn again. */
  toBlob() {
    const canvas = element("canvas", { width: this.width, height: this.height });
    const context = canvas.getContext("2d");
    context.fillStyle = "#000";
    context.fillRect(0, 0, this.width, this.height);
    drawStrokes(context, this.visible, "#fff");
    return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  }
}

function drawStrokes(context, strokes, colour) {
  Object.assign(context, { lineCap: "round", lineJoin: "round", strokeStyle: colour, fillStyle: colour });
  for (const { radius, points } of strokes) {
    context.lineWidth = 2 * radius;
    context.beginPath();
    context.arc(...points[0], radius, 0, 2 * Math.PI); // a line of no length is not drawn
    context.fill();
    context.beginPath();
    for (const point of points) context.lineTo(...point);
    context.stroke();
  }
}
