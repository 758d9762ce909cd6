/* The table of claims: filter its rows. */
addEventListener("DOMContentLoaded", function () {
  const form = document.getElementById("claims-filter");
  if (!form) return;
  const rows = [...document.querySelectorAll("details.claim")];
  const chapters = [...document.querySelectorAll(".claims")].map((list) => list.closest("section"));
  const asked = new URLSearchParams(location.search);
  for (const name of ["kind", "status"]) {
    for (const value of new Set(rows.map((row) => row.dataset[name]))) {
      form[name].add(new Option(value, value));
    }
    form[name].value = asked.get(name) || "";
    if (form[name].selectedIndex < 0) form[name].value = "";
  }
  form.words.value = asked.get("words") || "";
  function filter() {
    const words = form.words.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !(words.every((word) => text.includes(word))
        && (!form.kind.value || row.dataset.kind === form.kind.value)
        && (!form.status.value || row.dataset.status === form.status.value));
    }
    for (const chapter of chapters) chapter.hidden = !chapter.querySelector(".claim:not([hidden])");
    const left = rows.filter((row) => !row.hidden).length;
    form.querySelector("output").value = `${left} of ${rows.length} claims`;
  }
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  filter();
});
