import DataTable from "itables";

const dark = matchMedia("(prefers-color-scheme: dark)");
const follow = () => document.documentElement.classList.toggle("dark", dark.matches);
dark.addEventListener("change", follow);
follow();
for (const table of document.querySelectorAll("table.sortable")) new DataTable(table);
for (const [id, chart] of Object.entries(JSON.parse(document.getElementById("charts").textContent)))
  await vegaEmbed(`#${id} .chart`, chart, { actions: false, renderer: "svg", ast: true });
document.documentElement.classList.add("ready");
