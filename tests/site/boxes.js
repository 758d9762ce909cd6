/* Where the words of the figures of a page lie: off the picture, over each other, or struck through.
   Each figure is laid out anew from its SVG, at its own size; returns {figure: [fault, ...]}. */
async () => {
  const found = {};
  for (const image of document.querySelectorAll("main img")) {
    const figure = image.closest("figure, .latephase-frames, .cell");
    const name = (figure && figure.id) || image.alt.slice(0, 40);
    const text = await (await fetch(image.currentSrc)).text();
    if (!text.includes("<svg")) continue;
    const frame = document.createElement("div");
    frame.style.cssText = "position:absolute;left:0;top:0;visibility:hidden";
    frame.innerHTML = text.slice(text.indexOf("<svg"));
    document.body.append(frame);
    const svg = frame.querySelector("svg"), room = svg.getBoundingClientRect();
    const words = [...svg.querySelectorAll("text")].filter((node) => node.textContent.trim());
    /* A box is higher than its letters; that of a formula is the union of its parts'. */
    const boxes = words.map((node) => {
      const parts = node.querySelector("tspan") ? [...node.querySelectorAll("tspan")] : [node];
      const trimmed = parts.map((part) => {
        const { left, right, top, bottom, height, width } = part.getBoundingClientRect();
        const upright = width > height || node.textContent.trim().length < 3 || part !== node;
        return { left, right, top: top + (upright ? 0.2 * height : 0), bottom: bottom - (upright ? 0.15 * height : 0) };
      });
      const [least, most] = [Math.min, Math.max].map((of) => (side) => of(...trimmed.map((one) => one[side])));
      const box = { left: least("left"), right: most("right"), top: least("top"), bottom: most("bottom") };
      return { node, said: node.textContent.replace(/\s+/g, node === parts[0] ? " " : "").trim(), box };
    });
    const faults = [];
    for (const { said, box } of boxes) {
      const off = Math.max(room.left - box.left, box.right - room.right, room.top - box.top, box.bottom - room.bottom);
      if (off > 0.5) faults.push(`cut: “${said}” by ${off.toFixed(0)}`);
    }
    for (let i = 0; i < boxes.length; i++) {
      for (let j = 0; j < i; j++) {
        const a = boxes[i].box, b = boxes[j].box;
        const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const high = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (wide > 2 && high > 1) {
          faults.push(`over each other: “${boxes[j].said}”, “${boxes[i].said}”`);
        }
      }
    }
    const keys = boxes.filter(({ node }) => node.closest("g[id^=legend]"));
    for (const line of svg.querySelectorAll("g[id^=axes] > g[id^=line2d] path, g[id^=LineCollection] path")) {
      if (line.closest("g[id^=legend], defs") || getComputedStyle(line).stroke === "none") continue;
      if (!line.getAttribute("d")?.trim() || !line.getTotalLength()) continue;
      const length = line.getTotalLength(), to = line.getScreenCTM(), clip = line.getAttribute("clip-path");
      const axes = line.closest("g[id^=axes]").querySelector("g[id^=patch] path").getBoundingClientRect();
      for (let k = 0; k <= 300; k++) {
        const at = line.getPointAtLength((length * k) / 300).matrixTransform(to);
        if (clip && !(at.x >= axes.left && at.x <= axes.right && at.y >= axes.top && at.y <= axes.bottom)) continue;
        const hit = keys.find(({ box }) => at.x > box.left && at.x < box.right
          && at.y > box.top && at.y < box.bottom);
        if (hit && !faults.includes(`struck through: “${hit.said}”`)) faults.push(`struck through: “${hit.said}”`);
      }
    }
    frame.remove();
    if (faults.length) found[name] = faults;
  }
  return found;
}
