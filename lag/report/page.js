"use strict";
// Tables that sort: the button in a heading goes round largest first, smallest first, as it was
// (names: A first). A cell is what its data-value says, else its text without what stands small
// behind it; cells without a number come last, whichever way.
(() => {
  const UNITS = { k: 1e3, M: 1e6, "%": 1, B: 1, KB: 2 ** 10, MB: 2 ** 20, GB: 2 ** 30, TB: 2 ** 40 };
  const NUMBER = /^([<>]?)\s*([+−-]?)([\d,]*\.?\d+)(?:\s?(k|M|%|[KMGT]?B))?(?=$|[\s[(])/;

  function textOf(cell) {
    if (cell.dataset.value !== undefined) return cell.dataset.value;
    return [...cell.childNodes].filter((node) => node.nodeName !== "SMALL").map((node) => node.textContent).join("").trim();
  }

  function numberOf(text) {
    const found = NUMBER.exec(text);
    if (!found) return text === "" || isNaN(text) ? NaN : Number(text);
    const size = Number(found[3].replaceAll(",", "")) * (UNITS[found[4]] || 1);
    const shifted = found[1] === "<" ? size * (1 - 1e-9) : found[1] === ">" ? size * (1 + 1e-9) : size;
    return found[2] && found[2] !== "+" ? -shifted : shifted;
  }

  function compare(a, b, way) {
    if (typeof a === "string") return way * a.localeCompare(b, "en", { numeric: true });
    if (isNaN(a) || isNaN(b)) return isNaN(a) - isNaN(b);
    return way * (a - b);
  }

  function sort(body, rows, column, way) {
    const texts = new Map(rows.map((row) => [row, row.cells[column] ? textOf(row.cells[column]) : ""]));
    const named = rows.every((row) => row.cells[column]?.nodeName === "TH" || isNaN(numberOf(texts.get(row))));
    const keys = new Map(rows.map((row) => [row, named ? texts.get(row) : numberOf(texts.get(row))]));
    const first = named ? -way : way; // 1: largest first, or A first
    body.append(...(way ? [...rows].sort((a, b) => compare(keys.get(a), keys.get(b), -first)) : rows));
  }

  function makeSortable(table) {
    const [body] = table.tBodies, heads = [...(table.tHead?.rows[table.tHead.rows.length - 1]?.cells || [])];
    if (!body || body.rows.length < 2) return;
    const rows = [...body.rows]; // as they were
    for (const [column, head] of heads.entries()) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const way = { descending: -1, ascending: 0 }[head.ariaSort] ?? 1;
        sort(body, rows, column, way);
        for (const other of heads) other.removeAttribute("aria-sort");
        if (way) head.ariaSort = way > 0 ? "descending" : "ascending";
      });
    }
  }

  document.querySelectorAll("main table").forEach(makeSortable);
})();

// The browser of traces: everything shown comes from the pieces in this page. The address after #
// holds what is chosen, so that a view can be linked to. Texts only ever enter as text nodes.
(() => {
  const PAGE = 60; // questions per screenful of the list
  const NONE = "-"; // no run on the right; "" leaves the choice to the page
  const $ = (id) => document.getElementById(id);
  const controls = ["split", "left", "right", "state", "flip", "group", "search"];
  const narrow = matchMedia("(max-width: 720px)"); // the list or the question, not both
  const unpacked = new Map();
  const replies = new Map(); // by split: for each question and run its replies, as numbers of texts
  const opening = new Map(); // by split: the promise of that
  const lowered = new Map(); // those texts by number, in lower case
  let index, shown = PAGE, opened = 0;
  let view = { split: "0", left: "", right: "", state: "", flip: "", group: "", search: "", id: "" };

  async function unpack(name) {
    if (!unpacked.has(name)) unpacked.set(name, inflate($("piece-" + name).textContent));
    return unpacked.get(name);
  }

  async function inflate(text) {
    const packed = atob(text.trim()), bytes = new Uint8Array(packed.length);
    for (let n = 0; n < packed.length; n++) bytes[n] = packed.charCodeAt(n);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return JSON.parse(await new Response(stream).text());
  }

  async function textOf(number) {
    let piece = 0;
    while (piece + 1 < index.starts.length && index.starts[piece + 1] <= number) piece++;
    return (await unpack("texts-" + piece))[number - index.starts[piece]];
  }

  // Make an element: attributes, then children; strings become text nodes.
  function make(tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes || {})) {
      if (value !== null && value !== undefined) element.setAttribute(name, value);
    }
    element.append(...children.filter((child) => child !== null && child !== undefined));
    return element;
  }

  const split = () => index.splits[+view.split];
  const runNumber = (name) => split().runs.indexOf(name);
  const stateOf = (row) => (row ? index.states[row[0]] : "not asked");
  const thousands = (n) => Math.round(n).toLocaleString("en");

  // --- choosing ---------------------------------------------------------------------------------

  function fill(select, options, value) {
    const nodes = options.map((option) => Array.isArray(option[1])
      ? make("optgroup", { label: option[0] }, ...option[1].map(([v, t]) => make("option", { value: v }, t)))
      : make("option", { value: option[0] }, option[1]));
    select.replaceChildren(...nodes);
    select.value = value;
    if (select.selectedIndex < 0) select.selectedIndex = 0;
    return select.value;
  }

  function tally(names) {
    const counts = new Map();
    for (const name of names) counts.set(name, (counts.get(name) || 0) + 1);
    return [...counts].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1));
  }

  function flipOf(question) {
    const left = stateOf(question.rows[runNumber(view.left)]);
    const right = stateOf(question.rows[runNumber(view.right)]);
    return left === right ? "" : left + " > " + right;
  }

  const sides = () => [view.left, view.right].map(runNumber).filter((run) => run >= 0);

  function groupsOf(question) {
    const found = Object.entries(question.groups).map(([name, value]) => name + "=" + value);
    for (const row of sides().map((n) => question.rows[n])) {
      if (!row) continue;
      found.push("logs that entered=" + row[5]);
      found.push("best similarity=" + (row[6] || "none"));
    }
    return [...new Set(found)];
  }

  function groupOptions() {
    const byName = new Map();
    for (const [key, count] of tally(split().questions.flatMap(groupsOf))) {
      const [name, value] = [key.slice(0, key.indexOf("=")), key.slice(key.indexOf("=") + 1)];
      if (!byName.has(name)) byName.set(name, []);
      byName.get(name).push([key, `${name}: ${value} (${count})`]);
    }
    const natural = (a, b) => a[1].localeCompare(b[1], "en", { numeric: true });
    return [...byName].map(([name, options]) => [name, options.sort(natural)]);
  }

  function fillControls() {
    const runs = split().runs.map((name) => [name, name]);
    if (runNumber(view.left) < 0) view.left = split().runs[0];
    if (view.right !== NONE && runNumber(view.right) < 0) {
      view.right = split().runs.find((name) => name !== view.left) || NONE;
    }
    view.split = fill($("split"), index.splits.map((s, n) => [String(n), s.name]), view.split);
    view.left = fill($("left"), runs, view.left);
    view.right = fill($("right"), [[NONE, "none"], ...runs], view.right);
    const states = tally(split().questions.map((q) => stateOf(q.rows[runNumber(view.left)])));
    view.state = fill($("state"), [["", "anything"], ...states.map(([s, n]) => [s, `${s} (${n})`])], view.state);
    const flips = view.right !== NONE ? tally(split().questions.map(flipOf).filter(Boolean)) : [];
    const total = flips.reduce((sum, flip) => sum + flip[1], 0);
    view.flip = fill($("flip"), [["", "all questions"], ["*", `any change (${total})`],
      ...flips.map(([f, n]) => [f, `${f.replace(" > ", " to ")} (${n})`])], view.flip);
    view.group = fill($("group"), [["", "all"], ...groupOptions()], view.group);
    $("flip").disabled = view.right === NONE;
    $("search").value = view.search;
  }

  function matches(question, number) {
    const flip = view.flip && flipOf(question);
    if (view.state && stateOf(question.rows[runNumber(view.left)]) !== view.state) return false;
    if (view.flip && (view.flip === "*" ? !flip : flip !== view.flip)) return false;
    if (view.group && !groupsOf(question).includes(view.group)) return false;
    const wanted = words();
    if (!wanted.length) return true;
    const preds = sides().map((n) => (question.rows[n] || [])[3]);
    const text = [question.id, question.q, ...question.gold, ...preds].join("\n").toLowerCase();
    const said = (replies.get(view.split) || [])[number] || [];
    const texts = [text, ...sides().flatMap((n) => said[n] || []).map((n) => lowered.get(n))];
    return wanted.every((word) => texts.some((text) => text.includes(word)));
  }

  // What is searched for: words, and phrases in quotes.
  function words() {
    const found = view.search.toLowerCase().match(/"[^"]*"|[^\s"]+/g) || [];
    return found.map((word) => word.replaceAll('"', "")).filter(Boolean);
  }

  // Replies lie in the pieces, so that the page opens without them: unpacked at the first search.
  async function openReplies() {
    const chosen = view.split;
    const pieces = Math.ceil(split().questions.length / index.perPiece);
    const rows = await Promise.all([...Array(pieces).keys()].map((n) => unpack(`rows-${chosen}-${n}`)));
    const numbers = rows.flat().map((runs) => runs.map((trace) => (trace ? trace.steps.map((step) => step[2]) : [])));
    await Promise.all(index.starts.map((_, piece) => unpack("texts-" + piece)));
    for (const number of new Set(numbers.flat(2))) lowered.set(number, (await textOf(number)).toLowerCase());
    replies.set(chosen, numbers);
  }

  function searchReplies() {
    if (!words().length || replies.has(view.split)) return Promise.resolve();
    if (!opening.has(view.split)) opening.set(view.split, openReplies());
    return opening.get(view.split).then(renderList).catch(fail);
  }

  // --- the list ---------------------------------------------------------------------------------

  function stateLabel(row) {
    const state = stateOf(row);
    return make("span", { class: "state " + state }, state);
  }

  function entry(question) {
    const states = sides().flatMap((n, i) => [...(i ? ["→"] : []), stateLabel(question.rows[n])]);
    const text = split().withheld ? question.id : question.q || question.id;
    const button = make("button", { type: "button", "data-id": question.id, "aria-current": String(question.id === view.id) },
      make("span", { class: "text" }, text), make("span", { class: "states" }, ...states));
    button.addEventListener("click", () => choose(question.id));
    return make("li", {}, button);
  }

  function renderList() {
    const found = split().questions.filter(matches);
    $("list").replaceChildren(...found.slice(0, shown).map(entry));
    $("count").textContent = `${thousands(found.length)} of ${thousands(split().questions.length)} questions`;
    $("found").ariaBusy = String(words().length > 0 && !replies.has(view.split));
    $("more").hidden = found.length <= shown;
  }

  function choose(id) {
    view.id = id;
    writeAddress();
    for (const button of $("list").querySelectorAll("button")) {
      button.setAttribute("aria-current", String(button.dataset.id === id));
    }
    if (narrow.matches) $("detail").focus();
    return renderDetail();
  }

  // --- one question -----------------------------------------------------------------------------

  function facts(question) {
    const list = make("dl", {});
    const add = (name, ...values) => list.append(make("dt", {}, name), make("dd", {}, ...values));
    if (question.options.length) {
      const options = question.options.map((text, n) => make("li", {}, `(${String.fromCharCode(65 + n)}) ${text}`));
      add("Options", make("ul", { class: "options" }, ...options));
    }
    add("Gold", question.gold.join(" · ") || "not known");
    const groups = Object.entries(question.groups).map(([name, value]) => `${name} ${value}`);
    if (groups.length) add("Group", groups.join(", "));
    add("Id", question.id);
    return list;
  }

  function textBlock(text) {
    return make("div", { class: "text-block" }, ...(text ? marked(text) : [split().withheld ? "withheld" : "empty"]));
  }

  // A text in pieces, those that are searched for marked.
  function marked(text) {
    const wanted = words().map((word) => word.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&"));
    if (!wanted.length) return [text];
    const pieces = text.split(new RegExp(`(${wanted.join("|")})`, "gi"));
    return pieces.map((piece, n) => (n % 2 ? make("mark", {}, piece) : piece));
  }

  async function item(number, fresh, ...notes) {
    const [kind, id, title, content] = (await unpack("items"))[+view.split][number];
    const name = title ? await textOf(title) : id;
    const summary = make("summary", { class: fresh ? "fresh" : null }, name || id, ...notes.map((note) => make("span", { class: "quiet" }, " " + note)));
    const details = make("details", {}, summary);
    details.addEventListener("toggle", async () => {
      if (details.open && details.childElementCount === 1) {
        const text = content ? await textOf(content) : "";
        const missing = split().withheld ? "withheld" : "its text is not in the data folder any more";
        details.append(make("p", { class: "quiet" }, `${kind === "doc" ? "document" : "log of question"} ${id}`), textBlock(text || missing));
      }
    });
    return make("li", {}, details);
  }

  const SOURCES = { text: "as text", kv: "KV from the store", encoded: "KV encoded on the spot" };

  // --- a prompt, made from its pieces when it is opened -------------------------------------------

  // Pieces of a text; what a document or a log brought is marked, and named on hovering.
  function pieceNodes(pieces) {
    return Promise.all(pieces.map(async (piece) => {
      if (!Array.isArray(piece)) return textOf(piece);
      const [kind, id] = (await unpack("items"))[+view.split][piece[0]];
      const texts = await Promise.all(piece.slice(1).map(textOf));
      return make("span", { class: "from " + kind, title: `${kind === "doc" ? "document" : "log, as text,"} ${id}` }, ...texts);
    }));
  }

  async function part(name, pieces, title, kind) {
    if (!pieces.length) return [];
    const text = make("div", { class: "text-block " + (kind || ""), "data-part": name }, ...await pieceNodes(pieces));
    return [make("p", { class: "label" }, title), text];
  }

  async function noteNodes([item, kv, keep, after], used) {
    const name = item < 0 ? "Cheatsheet" : "Log " + (await unpack("items"))[+view.split][item][1];
    if (!kv) return part("note", keep, `${name}, as text`, "as-text");
    const source = SOURCES[used ? used[2] : ""] || "KV";
    const kept = await part("note", keep, `${name}, ${source}: these words are kept`, "as-kv");
    const hidden = after.length
      ? make("details", {}, make("summary", {}, "Hidden: the text that it was encoded after, which is not in the prompt"), ...(await part("after", after, "")).slice(1))
      : make("p", { class: "quiet" }, "Nothing is hidden: it was encoded after nothing.");
    return [...kept, hidden];
  }

  function setupNotes([, sink, recompute]) {
    const told = [];
    if (sink !== "0") told.push(`The first ${sink} tokens of a chat stand once before the logs, each of which was encoded behind them.`);
    if (recompute !== "0") told.push(`The first ${recompute} tokens of each log were computed again where they stand.`);
    return told.map((text) => make("p", { class: "quiet" }, text));
  }

  async function promptNodes(number, run, step, logs) {
    const rows = await unpack(`prompts-${view.split}-${Math.floor(number / index.perPiece)}`);
    const made = rows[number % index.perPiece][run][step];
    if (!Array.isArray(made)) return [make("p", { class: "quiet" }, "Not shown: " + ((await textOf(made)) || "withheld"))];
    const [system, notes, user, prefill] = made, setup = split().setups[run];
    const notesNodes = (await Promise.all(notes.map((note, n) => noteNodes(note, logs[n])))).flat();
    if (notes.some((note) => note[1])) notesNodes.unshift(...setupNotes(setup));
    const systemNodes = await part("system", [system], "System");
    const head = setup[0] === "system-first" ? [...systemNodes, ...notesNodes] : [...notesNodes, ...systemNodes];
    return [...head, ...await part("user", user, "User"), ...await part("prefill", prefill, "The model's turn begins with")];
  }

  function promptNode(...which) {
    const node = make("details", { class: "prompt" }, make("summary", {}, "Prompt, word for word"));
    const open = async () => node.append(...await promptNodes(...which));
    node.addEventListener("toggle", () => open().catch(fail), { once: true });
    return node;
  }

  async function stepNode(step, number, known, question, run) {
    const [action, query, reply, docs, logs, tokens, seconds] = step;
    const node = make("div", { class: "step", tabindex: "-1" }, make("h4", {}, `Step ${number} `, make("span", {}, action)));
    const label = (text) => node.append(make("p", { class: "label" }, text));
    const fresh = (key) => !known.has(key) && known.add(key);
    if (query) { label("Query"); node.append(textBlock(await textOf(query))); }
    if (docs.length) {
      label(`Documents in the prompt (${docs.length}; new ones stand out)`);
      node.append(make("ul", { class: "items docs" }, ...await Promise.all(docs.map((n) => item(n, fresh("d" + n))))));
    }
    if (logs.length) {
      label(`Logs in the prompt (${logs.length}; new ones stand out)`);
      node.append(make("ul", { class: "items logs" }, ...await Promise.all(logs.map(([n, similarity, source]) =>
        item(n, fresh("l" + n), `similarity ${similarity.toFixed(3)}, ${SOURCES[source] || source}`)))));
    }
    if (index.prompts) node.append(promptNode(question, run, number - 1, logs));
    label("Reply");
    node.append(textBlock(await textOf(reply)));
    const parts = ["retrieve", "prefill", "decode", "store"].map((name, n) => `${name} ${seconds[n].toFixed(2)}`);
    const drafted = tokens[5] ? `, ${thousands(tokens[6])} of them among ${thousands(tokens[5])} drafted` : "";
    node.append(make("p", { class: "tokens" }, `${thousands(tokens[0])} prompt tokens, ${thousands(tokens[1])} of them cached, ${thousands(tokens[2])} reused; ${thousands(tokens[3])} new${drafted}` +
      (tokens[4] ? `; ${thousands(tokens[4] / 1024)} KB of KV` : "") + `; seconds: ${parts.join(", ")}`));
    return node;
  }

  async function sideNode(question, number, run) {
    const row = question.rows[run];
    const piece = Math.floor(number / index.perPiece);
    const trace = (await unpack(`rows-${view.split}-${piece}`))[number % index.perPiece][run];
    const node = make("section", { class: "side", "data-run": split().runs[run] }, make("h3", {}, split().runs[run] + " ", stateLabel(row)));
    const list = make("dl", {}, make("dt", {}, "Answer"), make("dd", {}, (row && row[3]) || "none"));
    if (row) list.append(make("dt", {}, "F1"), make("dd", {}, row[2].toFixed(2)));
    node.append(list);
    if (!trace) return node;
    if (trace.error) {
      const words = [trace.error.stage, trace.error.type, trace.error.message].filter(Boolean).join(": ");
      node.append(make("p", { class: "failure" }, words));
      if (trace.error.traceback) node.append(make("details", {}, make("summary", {}, "Traceback"), textBlock(trace.error.traceback)));
    }
    if (trace.sheet) node.append(make("p", { class: "quiet" }, "Cheatsheet"), textBlock(await textOf(trace.sheet)));
    for (const left of trace.dropped || []) {
      const ids = [...(left.logs || []), ...(left.docs || [])].join(", ");
      if (ids) node.append(make("p", { class: "quiet" }, `Left out at step ${left.step} for want of room: ${ids}`));
    }
    for (const [log, similarity, was, then] of trace.harm || []) {
      node.append(make("p", { class: then === "right" ? "failure" : "quiet" }, `Without log ${log} (similarity ${similarity.toFixed(3)}, its own answer ${was || "unknown"}): ${then}`));
    }
    const known = new Set();
    for (const [n, step] of trace.steps.entries()) node.append(await stepNode(step, n + 1, known, number, run));
    return node;
  }

  async function renderDetail() {
    const turn = ++opened; // a slower, older choice must not overwrite a newer one
    const number = split().questions.findIndex((question) => question.id === view.id);
    $("browser").classList.toggle("reading", number >= 0);
    if (number < 0) {
      $("detail").replaceChildren(make("p", { class: "quiet" }, "Choose a question to see what each run did with it."));
      return;
    }
    const question = split().questions[number];
    const back = make("button", { id: "back", type: "button" }, "Back to the list");
    back.addEventListener("click", () => choose(""));
    const heading = split().withheld ? "Text withheld: the authors of this data set ask that its examples are not shown." : question.q || question.id;
    const both = await Promise.all([...new Set(sides())].map((run) => sideNode(question, number, run)));
    if (turn !== opened) return;
    $("detail").replaceChildren(back, make("p", { class: "question" }, heading), facts(question),
      make("div", { class: "sides" + (both.length > 1 ? " two" : "") }, ...both));
  }

  // --- keys -------------------------------------------------------------------------------------

  const MOVES = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 };
  const step = (nodes, node, by) => nodes[Math.max(0, Math.min(nodes.length - 1, nodes.indexOf(node) + by))];

  // To the next question; where there is room for both it opens as well.
  function moveQuestion(by) {
    const buttons = [...$("list").querySelectorAll("button")];
    const at = buttons.includes(document.activeElement) ? document.activeElement : buttons.find((b) => b.dataset.id === view.id);
    if (at === buttons.at(-1) && by > 0 && !$("more").hidden) {
      $("more").click();
      return moveQuestionFrom([...$("list").querySelectorAll("button")], buttons.length - 1, by);
    }
    return moveQuestionFrom(buttons, buttons.indexOf(at), by);
  }

  function moveQuestionFrom(buttons, at, by) {
    const next = step(buttons, buttons[at], by);
    if (!next) return;
    next.focus();
    if (!narrow.matches) choose(next.dataset.id);
  }

  function focusStep(node) {
    if (!node) return;
    node.focus({ preventScroll: true });
    node.scrollIntoView({ block: "start" });
  }

  const steps = () => [...$("detail").querySelectorAll(".step")];

  function moveSide(by) {
    const here = document.activeElement.closest(".side"), sides = [...$("detail").querySelectorAll(".side")];
    const other = step(sides, here, by);
    if (!here || other === here) return;
    const own = [...here.querySelectorAll(".step")].indexOf(document.activeElement.closest(".step"));
    const theirs = [...other.querySelectorAll(".step")];
    focusStep(theirs[Math.min(Math.max(own, 0), theirs.length - 1)]);
  }

  async function read(id) {
    await choose(id);
    if (view.id === id) focusStep(steps()[0]);
  }

  function leave() {
    const id = view.id;
    if (narrow.matches) choose("");
    [...$("list").querySelectorAll("button")].find((button) => button.dataset.id === id)?.focus();
  }

  // What a key does here, or nothing: form fields, and texts that scroll in themselves, keep theirs.
  function meaning(key, at) {
    const reading = $("detail").contains(at) || (narrow.matches && $("browser").classList.contains("reading"));
    const listed = $("list").contains(at);
    if (at.closest("input, select, textarea")) return null;
    if (key.startsWith("Arrow") && (!(reading || listed) || at.scrollHeight > at.clientHeight + 1 && at.matches(".text-block"))) return null;
    if (key in MOVES) return reading ? () => focusStep(step(steps(), document.activeElement.closest(".step"), MOVES[key])) : () => moveQuestion(MOVES[key]);
    if (reading && (key === "ArrowLeft" || key === "ArrowRight")) return () => moveSide(key === "ArrowLeft" ? -1 : 1);
    if (listed && key === "Enter") return () => read(at.dataset.id);
    return reading && key === "Escape" ? leave : null;
  }

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    const act = meaning(event.key, event.target);
    if (!act) return;
    event.preventDefault();
    act();
  }

  // --- the address and the start ----------------------------------------------------------------

  function writeAddress() {
    const kept = Object.entries(view).filter(([, value]) => value);
    history.replaceState(null, "", "#" + new URLSearchParams(kept));
  }

  function readAddress() {
    const text = location.hash.slice(1);
    if (!text.includes("=")) return false;
    const said = Object.fromEntries(new URLSearchParams(text));
    view = { split: "0", left: "", right: "", state: "", flip: "", group: "", search: "", id: "", ...said };
    if (!index.splits[+view.split]) view.split = "0";
    return true;
  }

  function render() {
    fillControls();
    renderList();
    return Promise.all([renderDetail(), searchReplies()]);
  }

  function changed(name) {
    view[name] = $(name).value;
    if (name === "split") Object.assign(view, { left: "", right: "", state: "", flip: "", group: "", id: "" });
    shown = PAGE;
    const done = render();
    writeAddress();
    return done;
  }

  async function start() {
    index = await unpack("index");
    const linked = readAddress();
    for (const name of controls) $(name).addEventListener(name === "search" ? "input" : "change", () => changed(name));
    $("filters").addEventListener("submit", (event) => event.preventDefault());
    $("more").addEventListener("click", () => { shown += PAGE; renderList(); });
    addEventListener("keydown", onKey);
    addEventListener("hashchange", () => {
      if (readAddress()) { shown = PAGE; render(); $("traces").scrollIntoView(); }
    });
    await render();
    if (linked) $("traces").scrollIntoView();
    document.body.dataset.ready = "yes";
  }

  function fail(error) {
    $("failure").textContent = "The traces could not be unpacked: " + error.message;
    $("failure").hidden = false;
    console.error(error);
  }

  start().catch(fail);
})();
