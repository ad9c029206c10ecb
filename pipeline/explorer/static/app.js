// The page of the explorer. The address holds the state: a search can be shared, and Back works. Everything from the
// set is written as text, never as markup. Nothing is loaded from elsewhere.

const byId = (id) => document.getElementById(id);
const MULTI = ["query", "language", "domain", "text_source", "rights", "license", "input"];
const NAMES = { query: "Query", language: "Language", domain: "Domain", text_source: "Text found in", rights: "Rights", license: "Licence", input: "Input" };
const SORTS = { "": "Order of the set", largest: "Largest original", smallest: "Smallest original", rarest: "Least likely kept", longest: "Longest text", shortest: "Shortest text" };
const SEARCH = ["q", ...MULTI, "like", "distance", "near", "side", "sort", "start"];
const NONE = "(none)";
const DISTANCE = 8, MOST_DISTANCE = 24, RATIO = [0.55, 2.4];
const languages = new Intl.DisplayNames(["en"], { type: "language", fallback: "code" });

let about = null;
let run = { id: 0, total: 0, next: 0, loading: false, pairs: [], key: null };
const selected = new Map();

// ------------------------------------------------------------------------------------------------ small helpers

/** An element with attributes, listeners (onclick) and children. Strings become text. */
function h(tag, given = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const element = document.createElement(name);
  if (classes.length) element.classList.add(...classes);
  for (const [key, value] of Object.entries(given)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "css") for (const [property, one] of Object.entries(value)) element.style.setProperty(property, one);
    else if (value === true) element.setAttribute(key, "");
    else element.setAttribute(key, value);
  }
  element.append(...children.flat(Infinity).filter((one) => one !== null && one !== undefined && one !== false));
  return element;
}

/** Text of the web: control and direction characters become visible, so that a text cannot pose as another one. */
const plain = (text) => String(text).replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u202a-\u202e\u2066-\u2069\u200e\u200f\ufeff]/g, "\ufffd");
const bdi = (text, given = {}) => h("bdi", { dir: "auto", ...given }, plain(text));
/** A text in which the words of the search are marked. */
function marked(text) {
  const words = run.marks;
  if (!words) return bdi(text);
  const parts = plain(text).split(words).map((part, at) => at % 2 ? h("mark", {}, part) : part);
  return h("bdi", { dir: "auto" }, parts);
}

/** What `marked` marks: the words and phrases of a search that must be there; null for none. */
function marks_of(search) {
  const found = [];
  for (const [, minus, quoted, word] of search.matchAll(/(-?)(?:"([^"]*)"?|(\S+))/g)) {
    const words = (quoted ?? word).replace(/\*$/, "").match(/[\p{L}\p{N}\p{M}]+/gu);
    if (minus || !words || /^https?:/.test(search)) continue;
    const start = /^[\p{sc=Han}\p{sc=Hiragana}\p{sc=Katakana}\p{sc=Thai}]/u.test(words[0]) ? "" : "(?<![\\p{L}\\p{N}])";
    const end = word?.endsWith("*") ? "[\\p{L}\\p{N}\\p{M}]*" : start && "(?![\\p{L}\\p{N}])";
    found.push(start + words.join("[^\\p{L}\\p{N}]{0,3}") + end);
  }
  return found.length ? new RegExp(`(${found.join("|")})`, "giu") : null;
}

const count = (number) => number.toLocaleString("en");
const plural = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

function label(facet, value) {
  if (value === NONE) return "not known";
  if (facet === "language" && /^[a-z]{2,3}(-[A-Za-z]+)?$/.test(value)) {
    try { const name = languages.of(value); return name === value ? value : `${name}`; } catch { return value; }
  }
  return plain(value);
}

function toast(text) {
  const box = byId("toast");
  box.textContent = text;
  box.classList.add("on");
  clearTimeout(toast.timer);
  toast.timer = setTimeout(() => box.classList.remove("on"), 2200);
}

class Failure extends Error {
  constructor(message, building) { super(message); this.building = building; }
}

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The explorer does not answer. Is it still running in the terminal?");
  }
  const body = await answer.json().catch(() => ({ error: "The answer cannot be read." }));
  if (body.building) throw new Failure("building", body.building);
  if (!answer.ok) throw new Failure(body.error || `Error ${answer.status}`);
  return body;
}

// ----------------------------------------------------------------------------------------------- the address

const state = () => new URLSearchParams(location.search);
const searchKey = (params) => { const kept = new URLSearchParams(); for (const name of SEARCH) for (const one of params.getAll(name)) kept.append(name, one); return kept.toString(); };
const address = (params) => { const text = params.toString(); return text ? `/?${text}` : "/"; };

/** Goes to a state. `replace`: without a new entry in the history. `over`: a dialog over this page, which Back closes. */
function go(params, { replace = false, over = false } = {}) {
  if (address(params) !== location.pathname + location.search) history[replace ? "replaceState" : "pushState"](replace ? history.state : { over }, "", address(params));
  show();
}

function change(edit, options) {
  const params = state();
  edit(params);
  for (const name of ["pair", "at", "view", "start"]) params.delete(name);
  go(params, options);
}

/** The state with a pair over it. Keys of tars may come twice, so that their row is named, too. */
function withPair(one) {
  const params = state();
  params.delete("view");
  params.set("pair", one.key);
  if (about.forget) params.delete("at"); else params.set("at", one.row);
  return params;
}

// ---------------------------------------------------------------------------------------------------- the search

async function show() {
  const params = state();
  if (!about && !(await start())) return;
  byId("sort").value = params.get("sort") || "";
  byId("sort").options[0].textContent = params.get("like") || params.get("near") ? "Nearest first" : SORTS[""];
  if (document.activeElement !== byId("q") || byId("q").value.trim() !== (params.get("q") || "")) byId("q").value = params.get("q") || "";
  const key = searchKey(params);
  if (run.key !== key) await search(params, key);
  showSelection(params.get("view") === "selection");
  showPair(params.get("pair"), params.get("at"));
}

async function start() {
  try {
    about = await ask("/api/set");
  } catch (error) {
    notice(error, start_again);
    return false;
  }
  byId("name").textContent = plain(about.name);
  byId("home").title = plain(about.folder);
  byId("by-picture").hidden = !about.pictures;
  byId("q").placeholder = `Search ${plural(about.pairs, "pair")}`;
  byId("sort").replaceChildren(...["", ...about.sorts].map((name) => h("option", { value: name }, SORTS[name])));
  loadSelection();
  fillAbout();
  return true;
}

const start_again = () => { run.key = null; about = null; show(); };

async function search(params, key) {
  run.abort?.abort();
  const abort = new AbortController();
  run = { id: run.id + 1, total: 0, next: 0, loading: true, pairs: [], key, abort, marks: marks_of(params.get("q") || "") };
  const mine = run;
  const grid = byId("grid");
  document.title = `${params.get("q") ? `${params.get("q")} · ` : ""}${about.name}`;
  chips(params);
  grid.classList.add("stale");
  const wait = setTimeout(() => { if (mine === run) { byId("notice").hidden = true; grid.classList.remove("stale"); grid.replaceChildren(...skeletons()); byId("status").textContent = "Searching …"; } }, 250);
  try {
    const answer = await ask(`/api/search?${key}`, { signal: abort.signal });
    clearTimeout(wait);
    if (mine !== run) return;
    const from = Number(params.get("start") || 0);
    if (answer.facets) facets(answer.facets, answer.total);
    else if (from) ask(`/api/search?${withoutStart(params)}`).then((all) => mine === run && facets(all.facets, all.total)).catch(() => {});
    byId("notice").hidden = true;
    grid.replaceChildren(h("li.rest", { role: "presentation" }));
    grid.classList.remove("stale");
    window.scrollTo({ top: 0 });
    run.first = from;
    take(answer);
    chips(params);
    status(answer, from);
    if (!answer.total) nothing(params, answer);
  } catch (error) {
    clearTimeout(wait);
    if (error.name === "AbortError" || mine !== run) return;
    grid.replaceChildren();
    grid.classList.remove("stale");
    byId("status").textContent = "";
    notice(error, start_again);
  } finally {
    mine.loading = false;
    if (mine === run) more();
  }
}

const withoutStart = (params) => { const some = new URLSearchParams(searchKey(params)); some.delete("start"); return some; };

function status(answer, from) {
  const all = answer.total === about.pairs;
  const text = all ? plural(answer.total, "pair") : `${count(answer.total)} of ${plural(about.pairs, "pair")}`;
  byId("status").replaceChildren(text, h("small", {}, from ? `from ${count(from + 1)} on` : `${answer.ms < 1 ? "< 1" : Math.round(answer.ms)} ms`));
  byId("shuffle").hidden = answer.total <= 120;
}

function take(answer) {
  const rest = byId("grid").lastElementChild;
  rest.before(...answer.pairs.map((one, at) => card(one, run.pairs.length + at)));
  run.pairs.push(...answer.pairs);
  run.total = answer.total;
  run.next = answer.start + answer.pairs.length;
  marks();
}

async function more() {
  if (run.loading || run.next >= run.total || !run.next) return;
  if (byId("end").getBoundingClientRect().top > innerHeight + 1200) return;
  const mine = run;
  mine.loading = true;
  const waiting = skeletons(6);
  byId("grid").lastElementChild.before(...waiting);
  try {
    const params = new URLSearchParams(run.key);
    params.set("start", run.next);
    const answer = await ask(`/api/search?${params}`);
    waiting.forEach((one) => one.remove());
    if (mine === run) take(answer);
  } catch (error) {
    waiting.forEach((one) => one.remove());
    if (mine === run) { toast(error.building ? "The set has changed" : error.message); if (error.building) { about = null; run.key = null; show(); } else mine.next = mine.total; }
  } finally {
    mine.loading = false;
    if (mine === run) requestAnimationFrame(more);
  }
}

const skeletons = (number = 18) => Array.from({ length: number }, (_, at) => h("li.skeleton", { "aria-hidden": "true", css: { "--r": [1.3, 0.8, 1.5, 1, 1.8][at % 5] } }, h("span.frame"), h("span.caption")));
const ratio = (one) => one.width && one.height ? Math.min(RATIO[1], Math.max(RATIO[0], one.width / one.height)) : 1.2;
const picture = (row) => `/picture/${about.digest.slice(0, 16)}/${row}`;

function frame(row, alt, given = {}, loaded = () => {}) {
  const box = h("span.frame", given);
  const image = h("img", { alt: plain(alt).slice(0, 200), loading: "lazy", decoding: "async", onload: () => { image.classList.add("there"); loaded(image); }, onerror: () => image.replaceWith(h("span.gone", {}, "No picture can be shown")) });
  image.src = picture(row);
  box.append(image);
  return box;
}

function card(one, at) {
  const meta = [one.domain && one.domain !== NONE ? plain(one.domain) : "", one.width ? `${one.width} × ${one.height}` : ""].filter(Boolean).join(" · ");
  const box = frame(one.row, one.text, {}, (image) => { if (!one.width) box.closest("li").style.setProperty("--r", ratio({ width: image.naturalWidth, height: image.naturalHeight })); });
  if (one.score !== undefined) box.append(h("span.score", {}, run.key.includes("near=") ? `${(100 * one.score).toFixed(1)} %` : plural(one.score, "bit")));
  const tick = h("input", { type: "checkbox", "aria-label": `Select: ${plain(one.text).slice(0, 80)}`, tabindex: "-1", onchange: () => toggle(one) });
  return h("li", { "data-at": at, "data-key": one.key, css: { "--r": ratio(one) } },
    h("a.card", { href: address(withPair(one)), onclick: (event) => { if (event.metaKey || event.ctrlKey || event.shiftKey) return; event.preventDefault(); go(withPair(one), { over: true }); } },
      box, h("span.caption", {}, one.text ? marked(one.text) : h("i.soft", {}, "no text")), meta && h("span.meta", {}, bdi(meta))),
    h("label.pick", {}, tick));
}

function nothing(params, answer) {
  const parts = [];
  if (answer.terms?.length) parts.push(h("ul", {}, answer.terms.map((one) => h("li", {}, bdi(one.term), `: ${plural(one.pairs, "pair")}`))));
  const filtered = [...params.keys()].some((name) => name !== "q" && name !== "sort" && SEARCH.includes(name));
  fill(about.pairs ? "No pair answers this search" : "This set has no pairs", [
    about.pairs ? h("p", {}, params.get("like") ? "Try a larger distance, or fewer filters." : answer.terms?.length > 1 ? "No pair holds all of these words:" : "Try other words, or the beginning of one with an asterisk: light*") : null, ...parts,
    h("div.row", {}, filtered && h("button", { onclick: () => change((p) => { for (const name of SEARCH) if (name !== "q" && name !== "sort") p.delete(name); }) }, "Remove the filters"),
      [...params.keys()].some((name) => SEARCH.includes(name)) && h("button.main", { onclick: () => go(new URLSearchParams()) }, "Show all pairs"))]);
}

function fill(title, parts, bad = false) {
  const box = byId("notice");
  box.className = bad ? "bad" : "";
  box.hidden = false;
  box.replaceChildren(h("h2", {}, title), ...parts.filter(Boolean));
}

/** An error, or how far the index is. */
function notice(error, again) {
  byId("grid").replaceChildren();
  if (error.building) {
    const { done, rows } = error.building;
    fill("The set has changed", [h("p", {}, `Its index is being built${rows ? `: ${count(done)} of ${plural(rows, "pair")}` : ""}.`), h("progress", rows ? { max: rows, value: done } : {})]);
    clearTimeout(notice.timer);
    notice.timer = setTimeout(again, 700);
    return;
  }
  fill("This cannot be shown", [h("p", {}, plain(error.message)), h("div.row", {}, h("button", { onclick: again }, "Try again"), location.search && h("button.main", { onclick: () => go(new URLSearchParams()) }, "Show all pairs"))], true);
}

// ---------------------------------------------------------------------------------------------------- the facets

const folded = new Set(["license", "input", "text_source", "rights"]);

function facets(answer, total) {
  const params = state();
  const place = document.activeElement?.closest?.(".facet")?.dataset.name;
  const mark = document.activeElement?.value;
  const boxes = MULTI.filter((name) => answer[name] && !tells_nothing(name, answer[name], params)).map((name) => {
    const known = byId(`facet-${name}`);
    const box = known ?? h("details.facet", { id: `facet-${name}`, "data-name": name, open: !folded.has(name) }, h("summary", {}, NAMES[name]));
    const chosen = params.getAll(name);
    if (chosen.length) box.open = true;
    const old = box.querySelector(".values");
    const list = h("div.values", { role: "group", "aria-label": NAMES[name] }, values(name, answer[name], chosen, total));
    if (old) old.replaceWith(list); else box.append(list);
    if (answer[name].more && !box.querySelector(".find")) list.before(finder(name));
    return box;
  });
  const side = about.sides ? [byId("facet-side") ?? sides()] : [];
  byId("facets").replaceChildren(...boxes, ...side);
  if (side.length) { const range = byId("side"); range.value = steps.findLastIndex((one) => one <= Number(params.get("side") || 0)); range.oninput(); }
  if (place) [...document.querySelectorAll(`#facet-${place} input`)].find((one) => one.value === mark)?.focus();
  const number = [...params.keys()].filter((name) => name !== "q" && name !== "sort" && name !== "distance" && name !== "start" && SEARCH.includes(name)).length;
  byId("filter-count").hidden = !number;
  byId("filter-count").textContent = number;
}

/** True for a facet that has no value but "not known". */
const tells_nothing = (name, found, params) => !params.getAll(name).length && about.values[name] <= 1 && (found.values[0]?.value ?? NONE) === NONE;

function values(name, found, chosen, total) {
  if (!found.values.length) return h("p.none", {}, "none");
  return found.values.map(({ value, count: number }) => {
    const box = h("input", { type: "checkbox", value, onchange: () => change((params) => {
      const kept = params.getAll(name).filter((one) => one !== value);
      params.delete(name);
      for (const one of box.checked ? [...kept, value] : kept) params.append(name, one);
    }) });
    box.checked = chosen.includes(value);
    return h("label.value", { title: plain(value) }, box, h("span.label", {}, bdi(label(name, value))), h("span.n", {}, number === null ? "–" : `${found.estimate ? "≈ " : ""}${count(number)}`),
      h("span.share", {}, h("i", { css: { width: `${Math.min(100, 100 * (number || 0) / Math.max(1, total))}%` } })));
  });
}

function finder(name) {
  let timer = 0;
  const input = h("input.find", { type: "search", placeholder: `Find among ${count(about.values[name])}`, "aria-label": `Find a ${NAMES[name].toLowerCase()}`, oninput: () => { clearTimeout(timer); timer = setTimeout(find, 180); } });
  const find = async () => {
    const params = new URLSearchParams(searchKey(state()));
    params.set("field", name);
    params.set("text", input.value.trim());
    try {
      const answer = await ask(`/api/suggest?${params}`);
      byId(`facet-${name}`).querySelector(".values").replaceChildren(...[values(name, answer, state().getAll(name), run.total)].flat());
    } catch (error) { toast(error.message); }
  };
  return input;
}

const steps = [0, 64, 128, 256, 384, 512, 768, 1024, 1536, 2048, 4096];

function sides() {
  const output = h("output", { for: "side" });
  const range = h("input", { type: "range", id: "side", min: 0, max: steps.length - 1, step: 1, "aria-label": "Least short side of the original, in pixels" });
  range.oninput = () => { output.textContent = range.value === "0" ? "any" : `≥ ${steps[range.value]} px`; range.setAttribute("aria-valuetext", output.textContent); };
  range.onchange = () => change((params) => { if (range.value === "0") params.delete("side"); else params.set("side", steps[range.value]); });
  return h("details.facet", { id: "facet-side", open: true }, h("summary", {}, "Short side of the original"), h("div.range", {}, range, output));
}

function chips(params) {
  const found = [];
  const chip = (text, remove, before = null) => found.push(h("button.chip", { type: "button", onclick: () => change(remove), "aria-label": `Remove: ${text}` }, before, h("span.text", {}, bdi(text)), h("span.x", { "aria-hidden": "true" }, "✕")));
  for (const name of MULTI) for (const value of params.getAll(name)) chip(`${NAMES[name]}: ${label(name, value)}`, (p) => { const kept = p.getAll(name).filter((one) => one !== value); p.delete(name); kept.forEach((one) => p.append(name, one)); });
  if (params.get("side")) chip(`Short side ≥ ${params.get("side")} px`, (p) => p.delete("side"));
  if (params.get("near")) chip(`Near ${params.get("near").slice(0, 8)} by embedding`, (p) => p.delete("near"));
  if (params.get("like")) {
    chip("Looks like this picture", (p) => { p.delete("like"); p.delete("distance"); }, example(params.get("like")));
    const output = h("output", {});
    const range = h("input", { type: "range", min: 0, max: MOST_DISTANCE, value: params.get("distance") || DISTANCE, "aria-label": "Bits in which the hashes may differ" });
    const said = () => { output.textContent = `≤ ${plural(Number(range.value), "bit")} apart`; };
    range.addEventListener("input", said);
    range.addEventListener("change", () => change((p) => p.set("distance", range.value), { replace: true }));
    said();
    found.push(h("label.range", {}, range, output));
  }
  if (found.length > 1) found.push(h("button.chip.plain", { type: "button", onclick: () => change((p) => { for (const name of SEARCH) if (name !== "q" && name !== "sort") p.delete(name); }) }, "Remove all"));
  byId("chips").replaceChildren(...found);
}

let given = { hash: "", url: "" }; // the picture that the user searches with

function example(hash) {
  if (given.hash === hash) return h("img", { src: given.url, alt: "" });
  const one = run.pairs.find((pair) => pair.phash === hash);
  return one ? h("img", { src: picture(one.row), alt: "" }) : null;
}

async function searchPicture(file) {
  if (!about?.pictures) return;
  if (!file.type.startsWith("image/")) return toast("This is not a picture");
  toast("Looking …");
  try {
    const { phash } = await ask("/api/hash", { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" } });
    byId("toast").classList.remove("on");
    URL.revokeObjectURL(given.url);
    given = { hash: phash, url: URL.createObjectURL(file) };
    change((params) => { for (const name of ["q", "near", "distance", "sort"]) params.delete(name); params.set("like", phash); });
  } catch (error) { toast(error.building ? "The index is being built" : error.message); }
}

const alike = (hash) => { given.hash !== hash && (given = { hash: "", url: "" }); change((params) => { for (const name of [...MULTI, "q", "near", "side", "sort", "distance"]) params.delete(name); params.set("like", hash); }); };

// ------------------------------------------------------------------------------------------------------ one pair

let shown = null;

async function showPair(key, at) {
  const dialog = byId("pair");
  if (!key) {
    const last = place();
    shown = null;
    if (dialog.open) { dialog.close(); focusCard(last); }
    return;
  }
  if (shown?.key === key && shown.at === at) return;
  const mine = shown = { key, at };
  if (!dialog.open) { byId("pair-body").replaceChildren(pairHead(), h("div.empty", {}, "…")); dialog.showModal(); }
  try {
    const answer = await ask(`/api/pair/${encodeURIComponent(key)}${at ? `?at=${encodeURIComponent(at)}` : ""}`);
    if (shown === mine) byId("pair-body").replaceChildren(pairHead(), pairBody(answer));
  } catch (error) {
    if (shown === mine) byId("pair-body").replaceChildren(pairHead(), h("div.empty", {}, plain(error.building ? "The set has changed: its index is being built." : error.message)));
  }
}

function close() {
  if (history.state?.over) return history.back();
  const params = state();
  for (const name of ["pair", "at", "view"]) params.delete(name);
  go(params);
}

/** The place of the pair that is shown among those that are loaded, or -1. */
const place = () => run.pairs.findIndex((one) => one.key === shown?.key && (!shown.at || String(one.row) === shown.at));

async function step(by) {
  const at = place() + by;
  if (at >= run.pairs.length && run.next < run.total) { byId("end").scrollIntoView(); await more(); }
  if (run.pairs[at]) go(withPair(run.pairs[at]), { replace: true });
}

function pairHead() {
  const at = place();
  return h("div.sheet-head", {}, h("h2", { id: "pair-title" }, at < 0 ? "Pair" : `Pair ${count((run.first || 0) + at + 1)} of ${count(run.total)}`),
    h("div.nav", {}, h("button.icon.quiet", { "aria-label": "The pair before", title: "The pair before (←)", disabled: at < 1, onclick: () => step(-1) }, "←"),
      h("button.icon.quiet", { "aria-label": "The next pair", title: "The next pair (→)", disabled: at < 0 || at + 1 >= run.total - (run.first || 0), onclick: () => step(1) }, "→"),
      h("button.icon.quiet", { "aria-label": "Close", title: "Close (Esc)", onclick: close }, "✕")));
}

const link = (params) => address(new URLSearchParams(params));
const jump = (params) => (event) => { if (event.metaKey || event.ctrlKey || event.shiftKey) return; event.preventDefault(); go(new URLSearchParams(params)); };
const row = (name, value, title) => value === null || value === undefined || value === "" ? null : [h("dt", { title }, name), h("dd", {}, value)];

/** A URL as text, with a link that opens it in a new tab without telling where from. Other schemes stay text. */
function outside(url) {
  if (!url) return null;
  const text = bdi(url, { class: "mono" });
  return /^https?:\/\//i.test(url) ? h("a", { href: url, target: "_blank", rel: "noopener noreferrer nofollow" }, text) : text;
}

function pairBody(answer) {
  const facts = answer.facts;
  const stage = h("div.stage", {});
  const image = h("img", { alt: plain(facts.text || "").slice(0, 300), onload: () => image.style.setProperty("width", `${Math.max(2 * image.naturalWidth, 280)}px`), onerror: () => image.replaceWith(h("p.gone", {}, "No picture can be shown.")) });
  image.src = picture(answer.row);
  stage.append(image);
  const one = { key: answer.key, row: answer.row, text: facts.text };
  const pick = h("button", { id: "pair-pick", "aria-pressed": selected.has(answer.key), onclick: () => toggle(one) }, selected.has(answer.key) ? "Selected ✓" : "Select");
  const texts = (facts.texts || []).slice(1);
  return h("div.pair", {}, stage, h("div.sheet-scroll", {},
    h("p.text", {}, facts.text ? marked(facts.text) : h("i.soft", {}, "no text")),
    texts.length ? h("div", {}, h("h3", {}, "Further texts"), texts.map((text) => h("p", {}, marked(text)))) : null,
    answer.picture && h("p.warn", { role: "alert" }, `The picture: ${plain(answer.picture)}`),
    h("div.actions", {}, pick,
      about.pictures && facts.phash && h("button", { title: "Pictures that look like this one (s)", onclick: () => alike(facts.phash) }, "Similar pictures"),
      answer.embedding && h("button", { onclick: () => change((params) => { for (const name of [...MULTI, "q", "like", "side", "sort"]) params.delete(name); params.set("near", answer.key); }) }, "Near by embedding"),
      h("button", { onclick: () => copy(answer.key, "The key is copied") }, "Copy key"),
      h("button", { onclick: () => copy(JSON.stringify(facts, null, 1), "The row is copied as JSON") }, "Copy row")),
    h("h3", {}, "Why it is in the set"), why(answer),
    answer.queries.length ? [h("h3", {}, `Queries in its text (${count(answer.queries.length)})`), h("div.tags", {}, answer.queries.slice().sort((a, b) => b.kept - a.kept || a.pairs - b.pairs).map((query) =>
      h("a.tag" + (query.kept ? ".kept" : ""), { href: link({ query: query.query }), title: `${plural(query.pairs, "pair")} of the set hold it; it picked ${count(query.picked)}`, onclick: jump({ query: query.query }) }, bdi(query.query), h("small", {}, count(query.pairs)))))] : null,
    section("Where it comes from", row("Picture", outside(facts.url)), row("As found", outside(facts.url_as_found)), row("After redirects", outside(facts.final_url)), row("Page", outside(facts.page_url)),
      row("Input", facts.source_file && [bdi(facts.source_file), facts.source_offset !== undefined ? ` at ${count(facts.source_offset)}` : ""]),
      row("Text from", facts.text_source && bdi(facts.text_source)), row("URL from", facts.url_source && bdi(facts.url_source)), row("Text as found", facts.text_as_found && bdi(facts.text_as_found)),
      row("Language", facts.language && `${label("language", facts.language)}${facts.language_score ? ` (${(100 * facts.language_score).toFixed(0)} %)` : ""}`),
      row("Rights", facts.rights && bdi(facts.rights + (facts.rights_protocol ? ` (${facts.rights_protocol})` : ""))), row("Licence", outside(facts.license)), row("Opt-out signals", facts.opt_out && bdi(facts.opt_out))),
    section("Picture", row("Stored", facts.width && `${facts.width} × ${facts.height} pixels, ${count(facts.jpg_size || 0)} bytes`), row("Original", facts.original_width && `${facts.original_width} × ${facts.original_height}${facts.original_format ? `, ${plain(facts.original_format)}` : ""}`),
      row("Key", h("span.mono", {}, plain(answer.key)))),
    about.forget && h("h3", {}, `Duplicates that it stands for (${count(answer.duplicate_count)})`),
    !about.forget ? null : answer.duplicates.length ? h("ul", {}, answer.duplicates.map((two) => h("li", {}, h("span.mono", {}, two.key), h("span.soft", {}, ` ${plain(two.kind).replaceAll("_", " ")}, ${plural(two.distance, "bit")}`)))) : h("p.soft", {}, "None was dropped for it."),
    about.pictures && facts.phash && alikes(answer),
    h("details.all", {}, h("summary", {}, "All columns"), h("dl.facts", {}, Object.entries(facts).map(([name, value]) => row(name, value === null ? h("span.soft", {}, "null") : h("span.mono", {}, plain(Array.isArray(value) ? JSON.stringify(value) : value)) , answer.meanings[name]))))));
}

/** The pictures of the set that look like that of a pair, once they are known. */
function alikes(answer) {
  const box = h("div", {});
  ask(`/api/search?like=${answer.facts.phash}`).then((found) => {
    const others = found.pairs.filter((one) => one.key !== answer.key);
    if (!others.length) return;
    box.append(h("h3", {}, `Pictures that look like it (${count(found.total - 1)})`), h("div.strip", {}, others.slice(0, 6).map((one) => h("a", { href: link({ pair: one.key }), title: plain(one.text), onclick: (event) => { event.preventDefault(); go(withPair(one), { replace: true }); } }, frame(one.row, one.text), plural(one.score, "bit")))));
  }).catch(() => {});
  return box;
}

/** A heading and its rows; nothing where there is no row. */
function section(title, ...rows) {
  const there = rows.filter(Boolean);
  return there.length ? [h("h3", {}, title), h("dl.facts", {}, there)] : null;
}

function why(answer) {
  const { facts, queries } = answer;
  const kept = queries.filter((query) => query.kept);
  const parts = [];
  if (!("keep_probability" in facts)) parts.push(h("p", {}, "Another tool made this set: it does not say why a pair is in it."));
  else {
    parts.push(h("p", {}, queries.length ? `Its texts hold ${queries.length === 1 ? "one query" : `${count(queries.length)} queries`} of the list.` : "Its texts hold no query of the list."));
    if (kept.length) parts.push(h("p", {}, about.cap ? `Balancing (at most ${plural(about.cap, "pair")} a query) picked it for ` : "It was picked for ", kept.slice(0, 6).flatMap((query, at) => [at ? ", " : "", h("b", {}, bdi(query.query))]), kept.length > 6 ? ` and ${count(kept.length - 6)} more.` : "."));
    parts.push(h("p", {}, facts.keep_probability >= 1 ? "At least one of its queries is rare enough that all of its pairs were kept." : `Among the pairs that were fetched, its chance to be kept was ${(100 * facts.keep_probability).toPrecision(3)} %.`));
  }
  return h("div.why", {}, parts);
}

async function copy(text, said) {
  try { await navigator.clipboard.writeText(text); toast(said); } catch { toast("The browser does not allow copying"); }
}

// --------------------------------------------------------------------------------------------------- the selection

const store = () => `openwit-explore:${about.folder}`;

function loadSelection() {
  selected.clear();
  try { for (const one of JSON.parse(localStorage.getItem(store()) || "[]")) selected.set(one.key, one); } catch { /* another version */ }
}

function toggle(one) {
  if (!selected.delete(one.key)) selected.set(one.key, { key: one.key, row: one.row, text: (one.text || "").slice(0, 120) });
  keep();
}

function keep() {
  try { localStorage.setItem(store(), JSON.stringify([...selected.values()])); } catch { toast("The browser has no room to keep the selection"); }
  marks();
  if (byId("selection").open) selectionBody();
}

function marks() {
  for (const item of document.querySelectorAll("#grid > li[data-key]")) {
    const is = selected.has(item.dataset.key);
    item.classList.toggle("picked", is);
    item.querySelector(".pick input").checked = is;
  }
  byId("selected-count").hidden = !selected.size;
  byId("selected-count").textContent = count(selected.size);
  const pick = byId("pair-pick");
  if (pick && shown) { const is = selected.has(shown.key); pick.textContent = is ? "Selected ✓" : "Select"; pick.setAttribute("aria-pressed", is); }
}

function showSelection(wanted) {
  const dialog = byId("selection");
  if (wanted && !dialog.open) { selectionBody(); dialog.showModal(); }
  if (!wanted && dialog.open) dialog.close();
}

const quoted = (text) => /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;

function selectionBody() {
  const keys = [...selected.keys()];
  const name = "selection.txt";
  const command = `python -m pipeline.forget ${quoted(about.folder)} --list ${name} --dry-run`;
  const save = (text) => { const url = URL.createObjectURL(new Blob([text], { type: "text/plain" })); h("a", { href: url, download: name }).click(); setTimeout(() => URL.revokeObjectURL(url), 1000); };
  const head = h("div.sheet-head", {}, h("h2", { id: "selection-title" }, selected.size ? `${plural(selected.size, "pair")} selected` : "Selection"), h("button.icon.quiet", { "aria-label": "Close", title: "Close (Esc)", onclick: close }, "✕"));
  const list = keys.slice(0, 500).map((key) => {
    const one = selected.get(key);
    const show = (event) => { event.preventDefault(); go(withPair(one), { replace: true }); };
    return h("li", {}, h("a", { href: address(withPair(one)), tabindex: "-1", "aria-hidden": "true", onclick: show }, frame(one.row, "")), h("div", { css: { "min-width": "0" } }, h("p", {}, h("a", { href: address(withPair(one)), onclick: show }, bdi(one.text || "no text"))), h("p.mono", {}, plain(key))),
      h("button.icon.quiet", { "aria-label": `Unselect ${plain(one.text)}`, onclick: () => toggle(one) }, "✕"));
  });
  byId("selection-body").replaceChildren(head, h("div.sheet-scroll", {}, selected.size ? [
    h("div.actions", {}, h("button.main", { onclick: () => save(keys.map((key) => about.forget ? `uid ${key}\n` : `${key}\n`).join("")) }, "Save as a file"), h("button", { onclick: () => copy(keys.join("\n"), "The keys are copied") }, "Copy keys"),
      h("button", { onclick: () => { if (confirm(`Unselect ${plural(selected.size, "pair")}?`)) { selected.clear(); keep(); } } }, "Unselect all")),
    about.forget && [h("h3", {}, "To take these pairs out of the set, for good"), h("p.soft", {}, "Save the file, then run this in a terminal. Without --dry-run it changes the set."), h("pre.command", { tabindex: "0" }, command), h("div.actions", {}, h("button", { onclick: () => copy(command, "The command is copied") }, "Copy the command"))],
    h("ul.listed", {}, list), keys.length > list.length && h("p.soft", {}, `… and ${count(keys.length - list.length)} more`)] :
    h("div.empty", {}, h("p", {}, "Nothing is selected yet."), h("p", {}, "Point at a picture and tick it, or press ", h("kbd", {}, "x"), ".")),
  run.pairs.some((one) => !selected.has(one.key)) && h("div.actions", {}, h("button", { onclick: () => { run.pairs.forEach((one) => selected.has(one.key) || selected.set(one.key, { key: one.key, row: one.row, text: (one.text || "").slice(0, 120) })); keep(); } }, `Select the ${count(run.pairs.length)} pairs that are loaded`))));
}

// ------------------------------------------------------------------------------------------------------- the rest

function fillAbout() {
  const last = about.ledger.at(-1), first = about.ledger[0];
  byId("about").replaceChildren(...[row("Folder", h("span.mono", {}, plain(about.folder))), row("What", about.kind), row("Pairs", count(about.pairs)), row("Shards", count(about.shards)),
    first && row("Candidates read", count(first.rows_in)), last && first && first.rows_in ? row("Kept", `${(100 * last.rows_out / first.rows_in).toPrecision(3)} %`) : null, row("Digest", h("span.mono", {}, about.digest))].flat().filter(Boolean));
}

const focusCard = (at) => document.querySelector(`#grid > li[data-at="${at}"] a`)?.focus();

function move(by) {
  const items = [...document.querySelectorAll("#grid > li[data-key]")];
  const at = items.indexOf(document.activeElement.closest?.("#grid > li"));
  if (at < 0) return items[0]?.querySelector("a").focus();
  let next = at + by;
  if (Math.abs(by) === 2) { // up or down: the card in the next row whose middle is nearest
    const here = items[at].getBoundingClientRect(), middle = here.left + here.width / 2, down = by > 0;
    const rows = items.filter((one) => { const box = one.getBoundingClientRect(); return down ? box.top > here.top + 20 : box.top < here.top - 20; });
    if (!rows.length) return;
    const top = down ? Math.min(...rows.map((one) => one.getBoundingClientRect().top)) : Math.max(...rows.map((one) => one.getBoundingClientRect().top));
    const line = rows.filter((one) => Math.abs(one.getBoundingClientRect().top - top) < 20);
    const away = (one) => { const box = one.getBoundingClientRect(); return Math.abs(box.left + box.width / 2 - middle); };
    next = items.indexOf(line.reduce((a, b) => away(b) < away(a) ? b : a));
  }
  items[next]?.querySelector("a").focus();
}

const STEPS = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 2, ArrowUp: -2 };

document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input:not([type=checkbox]):not([type=radio]), select, textarea");
  if (event.key === "Escape" && event.target === byId("q")) { event.target.value ? undefined : event.target.blur(); return; }
  if (event.key === "ArrowDown" && event.target === byId("q")) { event.preventDefault(); move(1); return; }
  if (typing || event.metaKey || event.ctrlKey || event.altKey) return;
  const dialog = document.querySelector("dialog[open]");
  if (dialog?.id === "pair") {
    if (event.key === "ArrowRight") step(1);
    else if (event.key === "ArrowLeft") step(-1);
    else if (event.key === "x") byId("pair-pick")?.click();
    else if (event.key === "s") { const one = run.pairs[place()]; one?.phash && about.pictures && alike(one.phash); }
    else return;
    event.preventDefault();
  } else if (dialog) return;
  else if (event.key === "/") { event.preventDefault(); byId("q").focus(); byId("q").select(); }
  else if (event.key === "?") byId("open-help").click();
  else if (event.key === "r") byId("shuffle").click();
  else if (event.key in STEPS && (document.activeElement === document.body || document.activeElement.closest("#grid, #gallery"))) {
    if (event.key.startsWith("ArrowU") && document.activeElement === document.body) return;
    event.preventDefault();
    move(STEPS[event.key]);
  } else {
    const item = document.activeElement.closest?.("#grid > li[data-key]");
    const one = item && run.pairs[item.dataset.at];
    if (one && event.key === "x") toggle(one);
    else if (one && event.key === "s" && one.phash && about.pictures) alike(one.phash);
  }
});

let typed = 0, typing = false;
byId("q").addEventListener("input", () => {
  clearTimeout(typed);
  typed = setTimeout(() => { change((params) => { const text = byId("q").value.trim(); if (text) params.set("q", text); else params.delete("q"); }, { replace: typing }); typing = true; }, 200);
});
byId("q").addEventListener("blur", () => { typing = false; });
byId("search").addEventListener("submit", (event) => { event.preventDefault(); clearTimeout(typed); typing = false; change((params) => { const text = byId("q").value.trim(); if (text) params.set("q", text); else params.delete("q"); }); });
byId("sort").addEventListener("change", () => change((params) => { if (byId("sort").value) params.set("sort", byId("sort").value); else params.delete("sort"); }));
byId("shuffle").addEventListener("click", () => { if (run.total > 120) { const params = state(); params.delete("pair"); params.set("start", Math.floor(Math.random() * (run.total - 60))); go(params); } });
byId("home").addEventListener("click", (event) => { if (event.metaKey || event.ctrlKey) return; event.preventDefault(); go(new URLSearchParams()); });
byId("open-selection").addEventListener("click", () => { const params = state(); params.set("view", "selection"); go(params, { over: true }); });
byId("open-help").addEventListener("click", () => byId("help").showModal());
byId("by-picture").addEventListener("click", () => byId("file").click());
byId("file").addEventListener("change", (event) => { if (event.target.files[0]) searchPicture(event.target.files[0]); event.target.value = ""; });
for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.id === "help" ? dialog.close() : close(); });
  if (dialog.id !== "help") dialog.addEventListener("cancel", (event) => { event.preventDefault(); close(); });
}

const aside = byId("filters");
function drawer(is) {
  aside.classList.toggle("open", is);
  byId("open-filters").setAttribute("aria-expanded", is);
  document.querySelector(".veil")?.remove();
  if (is) { document.body.append(h("button.veil", { "aria-label": "Close the filters", tabindex: "-1", onclick: () => drawer(false) })); byId("close-filters").focus(); } else byId("open-filters").focus();
}
byId("open-filters").addEventListener("click", () => drawer(!aside.classList.contains("open")));
byId("close-filters").addEventListener("click", () => drawer(false));
aside.addEventListener("keydown", (event) => { if (event.key === "Escape" && aside.classList.contains("open")) drawer(false); });

let depth = 0;
const files = (event) => event.dataTransfer?.types.includes("Files");
addEventListener("dragenter", (event) => { if (files(event)) { depth += 1; document.body.classList.add("dropping"); } });
addEventListener("dragleave", (event) => { if (files(event) && --depth <= 0) { depth = 0; document.body.classList.remove("dropping"); } });
addEventListener("dragover", (event) => { if (files(event)) event.preventDefault(); });
addEventListener("drop", (event) => { if (files(event)) { event.preventDefault(); depth = 0; document.body.classList.remove("dropping"); if (event.dataTransfer.files[0]) searchPicture(event.dataTransfer.files[0]); } });
addEventListener("paste", (event) => { const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/")); if (file) { event.preventDefault(); searchPicture(file); } });

function size(value) {
  document.body.dataset.size = value;
  document.querySelector(`.sizes input[value=${value}]`).checked = true;
  try { localStorage.setItem("openwit-explore-size", value); } catch { /* private window */ }
  requestAnimationFrame(more);
}
let kept = null;
try { kept = localStorage.getItem("openwit-explore-size"); } catch { /* private window */ }
size(["s", "m", "l"].includes(kept) ? kept : "m");
document.querySelector(".sizes").addEventListener("change", (event) => size(event.target.value));

new IntersectionObserver(more, { rootMargin: "1200px" }).observe(byId("end"));
addEventListener("popstate", show);
byId("grid").replaceChildren(...skeletons());
show();
