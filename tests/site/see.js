/* What a page shows, as facts for the tests; run in the page once it has come to rest. */
() => {
  const main = document.querySelector("main"), wide = document.documentElement.clientWidth;
  const all = (selector) => [...main.querySelectorAll(selector)];
  const brief = (node) => node.outerHTML.replace(/\s+/g, " ").slice(0, 160);
  const seen = (node) => node.checkVisibility({ visibilityProperty: true });
  const style = (node) => getComputedStyle(node);

  /* TeX that nothing has rendered, outside of code. */
  const raw = [], hidden = "script, style, pre, code, mjx-container";
  const words = document.createTreeWalker(main, NodeFilter.SHOW_TEXT);
  while (words.nextNode()) {
    const found = words.currentNode.data.match(/\$[^$\s][^$]*\$|\\[a-zA-Z]{2,}|\\[()[\]]/);
    if (found && !words.currentNode.parentElement.closest(hidden)) raw.push(found[0]);
  }

  /* What sticks out to the right, and no box around it scrolls. */
  const boxed = (node) => {
    for (let box = node.parentElement; box && box !== main; box = box.parentElement) {
      if (style(box).overflowX !== "visible") return true;
    }
    return false;
  };
  const out = all("*").filter((node) => node.getBoundingClientRect().right > wide + 1
    && !node.closest("mjx-assistive-mml") && seen(node) && !boxed(node));

  return {
    theme: document.documentElement.dataset.theme,
    ground: style(document.body).backgroundColor,
    headings: all("h1, h2, h3, h4, h5, h6").filter(seen).map((h) => [+h.tagName[1], h.innerText]),
    images: all("img").filter(seen).map((img) => ({
      alt: img.alt, url: img.currentSrc, drawn: img.complete && img.naturalWidth > 0,
      filter: style(img).filter,
    })),
    unheaded: all("table:not([role=presentation])").filter((t) => !t.querySelector("th")
      || [...t.querySelectorAll("th")].some((th) => !th.textContent.trim())).map(brief),
    rendered: all("mjx-container").length,
    unrendered: all(".math").filter((m) => !m.querySelector("mjx-container")).map(brief),
    refused: all("mjx-merror, [data-mjx-error]").map(brief),
    raw,
    width: [document.documentElement.scrollWidth, wide],
    out: out.map(brief),
    unreachable: [...document.querySelectorAll("[onclick], [role=button], [tabindex]")]
      .filter((node) => seen(node) && (node.tabIndex > 0 || (node.tabIndex < 0
        && (node.onclick || node.getAttribute("role") === "button")))).map(brief),
  };
}
