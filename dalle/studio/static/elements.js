// Elements of the page: find one by its id, create one, count in words.

export const $ = (id) => document.getElementById(id);

/** Create an element with properties and children, which may be texts. */
export function element(tag, properties = {}, ...children) {
  const created = Object.assign(document.createElement(tag), properties);
  created.append(...children);
  return created;
}

export const plural = (count, noun) => `${count} ${noun}${Number(count) === 1 ? "" : "s"}`;
