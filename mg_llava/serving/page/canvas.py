"""The picture on which boxes are drawn by hand, and the frames of a video in a row: small components of our own."""

from __future__ import annotations

from typing import Any

HEIGHT = 420
"""Pixels, so that a tall picture is seen whole."""
_HTML = """
<figure>
  {{#if value.src}}<img src="{{value.src}}" alt="{{value.alt}}" draggable="false"
    data-width="{{value.width}}" data-height="{{value.height}}">{{/if}}
</figure>
"""
_CSS = """
figure { margin: 0; min-height: 2rem; text-align: center }
img {
  display: inline-block; max-width: 100%; max-height: min(HEIGHTpx, 50vh); min-height: 0; cursor: crosshair;
  touch-action: none; user-select: none;
}
""".replace("HEIGHT", str(HEIGHT))
_JS = """
// the rectangle lives outside of what the template renders
const shown = document.createElement('div');
shown.className = 'being-drawn';
Object.assign(shown.style, {position: 'fixed', border: '2px dashed #ff5d5d', background: 'rgba(255, 93, 93, .2)',
  pointerEvents: 'none', display: 'none', zIndex: 10});
document.body.appendChild(shown);
let start = null;
const within = (value, low, high) => Math.min(Math.max(value, low), high);
const corner = (event, frame) =>
  [within(event.clientX, frame.left, frame.right), within(event.clientY, frame.top, frame.bottom)];
const stop = () => { start = null; shown.style.display = 'none'; };
element.addEventListener('pointerdown', (event) => {
  if (event.target.tagName !== 'IMG' || event.button !== 0) return;
  event.preventDefault();
  event.target.setPointerCapture(event.pointerId);
  start = corner(event, event.target.getBoundingClientRect());
});
element.addEventListener('pointermove', (event) => {
  if (!start) return;
  const now = corner(event, event.target.getBoundingClientRect());
  const [left, top] = [0, 1].map((axis) => Math.min(start[axis], now[axis]));
  const [width, height] = [0, 1].map((axis) => Math.abs(start[axis] - now[axis]));
  Object.assign(shown.style, {display: 'block', left: `${left}px`, top: `${top}px`, width: `${width}px`,
    height: `${height}px`});
});
element.addEventListener('pointercancel', stop);
element.addEventListener('pointerup', (event) => {
  if (!start) return;
  const picture = event.target;
  const frame = picture.getBoundingClientRect();
  const now = corner(event, frame);
  const begin = start;
  stop();
  // a click is no box
  if (Math.abs(begin[0] - now[0]) < 4 || Math.abs(begin[1] - now[1]) < 4) return;
  const scales = [picture.dataset.width / frame.width, picture.dataset.height / frame.height];
  const origin = [frame.left, frame.top];
  const box = [...begin, ...now].map((value, place) => (value - origin[place % 2]) * scales[place % 2]);
  trigger('select', {box});
});
"""

_STRIP_HTML = """
<div role="group" aria-label="Frames of the video">
  {{#each value}}<figure><img src="{{this.src}}" alt="{{this.alt}}"><figcaption>{{this.caption}}</figcaption></figure>
  {{/each}}
</div>
"""
_STRIP_CSS = """
div { display: grid; grid-template-columns: repeat(auto-fill, minmax(max(80px, 22%), 1fr)); gap: 4px }
figure { margin: 0 }
img { width: 100%; max-height: 40vh; object-fit: contain }
figcaption { font-size: .8rem; text-align: center }
"""


def make_strip() -> Any:
    """Returns the component that shows the frames of a video; its value is a list of `figures.Figure`."""
    import gradio

    return gradio.HTML([], html_template=_STRIP_HTML, css_template=_STRIP_CSS, label="Frames", elem_id="strip")


def make_canvas() -> Any:
    """Returns the component; its value is as `Page.show` returns it, its event ``select`` carries ``box``.

    ``box`` are four numbers, two corners in pixels of the picture.
    """
    import gradio

    return gradio.HTML(
        None, html_template=_HTML, css_template=_CSS, js_on_load=_JS, label="What the model is given", elem_id="drawn"
    )
