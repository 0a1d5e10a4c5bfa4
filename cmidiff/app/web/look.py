"""How the page looks."""

from __future__ import annotations

from gradio.themes import Base, Default

CSS = """
.gradio-container { max-width: 1240px !important; margin: 0 auto; overflow: clip !important; }
.gradio-container h1 { margin-bottom: 0; }
.status { min-height: 3.4em; }
.status p, #size p { margin: 0.2em 0; }
.status progress { width: 100%; height: 0.9em; accent-color: var(--primary-600); }
#status [data-testid="status-tracker"], #size [data-testid="status-tracker"] { display: none; }
.refusal { border-left: 4px solid #c2410c; padding: 0.4em 0.8em; margin: 0; overflow-wrap: anywhere; }
.refusal { background: color-mix(in srgb, #c2410c 12%, transparent); }
#paint div { color: var(--body-text-color); }
#paint .empty, #paint .empty div { color: #27272a; }  /* on the canvas, which is white in both schemes */
button { transition: none !important; }
@media (min-width: 700px) { #answers { position: sticky; top: 8px; align-self: flex-start; } }
@media (max-width: 640px) {
    .gradio-container .main { padding: 8px !important; }
    #paint [data-testid="block-label"] { font-size: 0; padding: 4px; }  /* its words would lie below the tools */
}
"""


def theme() -> Base:
    """Return Gradio's own theme with fonts of the system (its own are fetched) and colours that can be read."""
    faint = "*neutral_600"
    fonts = Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    return fonts.set(
        body_text_color_subdued=faint,
        body_text_color_subdued_dark="*neutral_300",
        block_label_text_color=faint,
        block_label_text_color_dark="*neutral_300",
        block_title_text_color=faint,
        block_title_text_color_dark="*neutral_300",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_800",
    )
