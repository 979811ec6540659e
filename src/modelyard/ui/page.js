"use strict";
const at = (id) => document.getElementById(id);

/* Everything shown is set as text, never as markup: names and messages come from configurations and engines. */
function make(tag, { text, kind, ...attributes } = {}, ...children) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (kind) node.className = kind;
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}
