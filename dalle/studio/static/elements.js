// Elements of the page: find one by its id, create one, keep the focus, count in words.

export const $ = (id) => document.getElementById(id);

/** Create an element with properties and children, which may be texts. */
export function element(tag, properties = {}, ...children) {
  const created = Object.assign(document.createElement(tag), properties);
  created.append(...children);
  return created;
}

/** Change which elements are disabled or hidden. If the focused one is then, focus the first of `others` that is not. */
export function keepFocus(change, ...others) {
  const focused = document.activeElement;
  const usable = (each) => each?.isConnected && !each.disabled && !each.hidden;
  change();
  if (!usable(focused)) others.find(usable)?.focus();
}

export const plural = (count, noun) => `${count} ${noun}${Number(count) === 1 ? "" : "s"}`;
