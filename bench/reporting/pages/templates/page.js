const { default: DataTable } = await tables(); // from the script before this one

const root = document.documentElement;
const dark = matchMedia("(prefers-color-scheme: dark)");
const follow = () => root.classList.toggle("dark", dark.matches);
dark.addEventListener("change", follow);
follow();

const chosen = Object.fromEntries([...document.querySelectorAll(".filters select")].map(({ name }) => [name, ""]));
const passes = (values) => Object.entries(chosen).every(([name, wanted]) => !wanted || !values[name] || values[name] === wanted);

const shown = [...document.querySelectorAll("table.sortable")].map((element) => {
  const table = new DataTable(element, {
    columnDefs: [{ targets: ".right", orderSequence: ["desc", "asc"] }],
    layout: {
      topStart: element.dataset.hides === "true" ? { buttons: [{ extend: "colvis", text: "columns" }] } : null,
      topEnd: element.dataset.searchBox === "true" ? "search" : null,
    },
  });
  table.search.fixed("page", (_, __, index) => passes(table.row(index).node().dataset));
  return table;
});

// A chart in a folded part has no width yet, so charts are drawn when they become visible.
const charts = JSON.parse(document.getElementById("charts")?.textContent ?? "{}");
const drawn = new Map();
const filtered = (spec) => {
  if (!Object.values(chosen).some(Boolean)) return spec;
  return JSON.parse(JSON.stringify(spec), (key, value) =>
    Array.isArray(value) && value.length && value[0]?.method !== undefined ? value.filter(passes) : value);
};
const draw = async (id) => {
  const key = JSON.stringify(chosen);
  if (drawn.get(id) === key) return;
  drawn.set(id, key);
  // A filter may leave nothing to draw, about which Vega warns.
  const logLevel = Object.values(chosen).some(Boolean) ? 1 : 2;
  const options = { actions: false, renderer: "svg", ast: true, logLevel };
  await vegaEmbed(`#${CSS.escape(id)} .chart`, filtered(charts[id]), options);
};
const drawVisible = async () => {
  for (const id of Object.keys(charts)) if (!document.getElementById(id).closest("details:not([open])")) await draw(id);
};

for (const details of document.querySelectorAll("details")) details.addEventListener("toggle", drawVisible);
const openTarget = () => {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let at = target; at; at = at.parentElement) if (at.tagName === "DETAILS") at.open = true;
};
addEventListener("hashchange", openTarget);
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((details) => (details.open = true)));

document.querySelector(".filters")?.addEventListener("change", async (event) => {
  chosen[event.target.name] = event.target.value;
  for (const table of shown) table.draw();
  await drawVisible();
});

document.addEventListener("click", async (event) => {
  const button = event.target.closest("button.copy");
  if (!button) return;
  const command = document.getElementById(button.dataset.copy).querySelector("td.code");
  try {
    await navigator.clipboard.writeText(command.textContent);
    button.classList.add("copied");
  } catch {
    getSelection().selectAllChildren(command);
    command.scrollIntoView();
  }
});

openTarget();
await drawVisible();
root.classList.add("ready");
