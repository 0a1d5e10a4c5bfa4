"""How the page looks, and what it does in the browser alone: it refuses a file that is too large before it is sent."""

from __future__ import annotations

import json

_STYLE = """
<style>
.gradio-container { max-width: 1240px !important; margin: 0 auto; overflow: clip !important; }
.gradio-container h1 { margin-bottom: 0; }
.status { min-height: 4.2em; }
.status progress { width: 100%; height: 0.9em; appearance: none; border: 0; border-radius: 9px; overflow: hidden; }
.status progress, .status progress::-webkit-progress-bar { background: var(--border-color-primary); }
.status progress::-webkit-progress-value { background: var(--primary-500); }
.status progress::-moz-progress-bar { background: var(--primary-500); }
.status p { margin: 0.2em 0; }
.refusal { border-left: 4px solid #c2410c; padding: 0.4em 0.8em; margin: 0; overflow-wrap: anywhere; }
.refusal { background: color-mix(in srgb, #c2410c 12%, transparent); }
.comparison { margin: 0 0 1em; width: fit-content; max-width: 100%; }
.figures { display: grid; gap: 1em; align-items: end; }
.figures { grid-template-columns: repeat(auto-fit, minmax(min(220px, 45%), 1fr)); }
#moments .figures { grid-template-columns: repeat(auto-fit, minmax(min(260px, 100%), 1fr)); }
.figures figure { margin: 0; }
.figures img { width: 100%; margin: 0; }
.comparison figcaption { display: flex; justify-content: space-between; gap: 1em; padding: 0.3em 0; }
.comparison figcaption span:last-child { text-align: right; }
.comparison .halves { position: relative; display: inline-block; max-width: 100%; line-height: 0; --cut: 50%; }
.comparison .halves img { max-width: 100%; margin: 0; }
.comparison .halves img + img { position: absolute; inset: 0; width: 100%; clip-path: inset(0 0 0 var(--cut)); }
.comparison .halves::after { content: ""; position: absolute; inset: 0 auto 0 var(--cut); width: 3px; }
.comparison .halves::after { margin-left: -1.5px; background: #fff; box-shadow: 0 0 3px #000; pointer-events: none; }
.comparison .handle { position: absolute; left: var(--cut); top: 50%; transform: translate(-50%, -50%); z-index: 1; }
.comparison .handle { pointer-events: none; background: var(--primary-500); color: #fff; border-radius: 6px; }
.comparison .handle { padding: 0.2em 0.5em; line-height: 1.4; }
.comparison input { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0; }
.comparison input { appearance: none; cursor: ew-resize; touch-action: pan-y; }
.comparison input::-webkit-slider-thumb { appearance: none; width: 2px; height: 100%; }
.comparison .halves:has(input:focus-visible) { outline: 3px solid var(--primary-500); outline-offset: 2px; }
#figures :is(th, td) { padding: 0.3em 0.6em; }
#figures td + td { white-space: nowrap; text-align: right; }
#command { overflow-x: auto; }
@media (min-width: 700px) { #answers { position: sticky; top: 8px; align-self: flex-start; } }
@media (max-width: 640px) {
  .gradio-container .main { padding: 8px !important; }
}
</style>
"""

_REFUSING = """
<script>
(() => {
  const most = %(bytes)d;
  const size = (bytes) => `${(bytes / 2 ** 20).toPrecision(3)} MB`;
  const silence = () => document.querySelectorAll(".oversized").forEach((line) => line.remove());
  const refused = (files, target) => {
    silence();
    const large = [...files].find((file) => file.size > most);
    if (large === undefined) return false;
    const line = document.createElement("p");
    line.className = "refusal oversized";
    line.setAttribute("role", "alert");
    line.textContent = %(line)s.replace("NAME", () => large.name || "This picture").replace("SIZE", size(large.size));
    (target.closest(".block") || target).insertAdjacentElement("afterend", line);
    return true;
  };
  const stop = (event) => { event.preventDefault(); event.stopImmediatePropagation(); };
  window.addEventListener("change", (event) => {
    if (event.target.type !== "file" || !refused(event.target.files, event.target)) return;
    stop(event);
    event.target.value = "";
  }, true);
  window.addEventListener("drop", (event) => {
    if (!refused(event.dataTransfer.files, event.target)) return;
    stop(event);
    event.target.dispatchEvent(new DragEvent("dragleave", { bubbles: true }));
  }, true);
  window.addEventListener("click", (event) => { if (event.target.closest("#sample")) silence(); }, true);
  if (!navigator.clipboard?.read) return;
  const read = navigator.clipboard.read.bind(navigator.clipboard);
  navigator.clipboard.read = async () => {
    const block = document.activeElement, items = await read();
    for (const item of items) {
      const type = item.types.find((name) => name.startsWith("image/"));
      if (type !== undefined && refused([await item.getType(type)], block)) return [];
    }
    return items;
  };
})();
</script>
"""
_LINE = "NAME is too large: SIZE, and at most %.3g MB can be taken. Shrink it or save it as JPEG, then give that file."


def head(file_bytes: int) -> str:
    """What the page adds to its head: its style, and the line shown instead of sending more than ``file_bytes``.

    The server refuses such a file all the same; a browser that is still sending would not show its answer.
    """
    return _STYLE + _REFUSING % {"bytes": file_bytes, "line": json.dumps(_LINE % (file_bytes / 2**20))}
