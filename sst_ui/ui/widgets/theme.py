"""The look: a theme of our own. Calm, dense, light and dark; petrol for what one can press, warm
for what is edited. The rules of layout are in assets/style.css.
"""

import gradio as gr
from gradio.themes.utils import colors, sizes

from sst_ui.paths import ASSETS
from sst_ui.ui.widgets.texts import translations

PETROL = colors.Color(
    name="petrol",
    c50="#eef7f8",
    c100="#d8ecee",
    c200="#b3d9de",
    c300="#83bfc7",
    c400="#4f9fab",
    c500="#297d8a",
    c600="#1d6a78",
    c700="#1a5662",
    c800="#1a4650",
    c900="#193b44",
    c950="#0b252c",
)
INK = colors.Color(
    name="ink",
    c50="#f7f8f9",
    c100="#eef0f2",
    c200="#dfe3e7",
    c300="#c5ccd3",
    c400="#98a3ae",
    c500="#5c6773",
    c600="#525d69",
    c700="#3c4650",
    c800="#232b32",
    c900="#171d22",
    c950="#0f1418",
)
THREADS = 160  # each job that runs or waits holds one, and each answer; the rest are quick
WINDOWS = 500  # of which the server keeps the state, about a megabyte each; then the oldest go
UPLOAD = "20mb"  # of one file that a visitor hands in
SANS = ("ui-sans-serif", "system-ui", "Segoe UI", "Noto Sans", "Noto Sans CJK JP", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "Noto Sans Mono", "monospace")

LOOK = {
    "body_background_fill": "*neutral_100",
    "body_background_fill_dark": "*neutral_950",
    "body_text_color": "*neutral_800",
    "body_text_color_dark": "*neutral_200",
    "body_text_color_subdued": "*neutral_500",
    "body_text_color_subdued_dark": "*neutral_400",
    "background_fill_primary": "white",
    "background_fill_primary_dark": "*neutral_900",
    "background_fill_secondary": "*neutral_50",
    "background_fill_secondary_dark": "*neutral_800",
    "border_color_primary": "*neutral_200",
    "border_color_primary_dark": "*neutral_800",
    "block_background_fill": "white",
    "block_background_fill_dark": "*neutral_900",
    "block_border_width": "0px",
    "block_shadow": "none",
    "block_shadow_dark": "none",
    "block_padding": "6px 10px",
    "block_label_background_fill": "transparent",
    "block_label_background_fill_dark": "transparent",
    "block_label_border_width": "0px",
    "block_label_text_color": "*neutral_500",
    "block_label_text_color_dark": "*neutral_400",
    "block_title_text_color": "*neutral_600",
    "block_title_text_color_dark": "*neutral_300",
    "block_title_text_size": "12px",
    "block_title_text_weight": "500",
    "block_info_text_size": "11px",
    "form_gap_width": "0px",
    "layout_gap": "8px",
    "input_background_fill": "*neutral_50",
    "input_background_fill_dark": "*neutral_950",
    "input_border_color": "*neutral_200",
    "input_border_color_dark": "*neutral_700",
    "input_border_color_focus": "*primary_400",
    "input_border_color_focus_dark": "*primary_500",
    "input_border_width": "1px",
    "input_shadow": "none",
    "input_shadow_focus": "0 0 0 2px *primary_100",
    "input_shadow_focus_dark": "0 0 0 2px *primary_900",
    "input_padding": "5px 8px",
    "input_text_size": "13px",
    "slider_color": "*primary_500",
    "slider_color_dark": "*primary_400",
    "button_primary_background_fill": "*primary_600",
    "button_primary_background_fill_hover": "*primary_700",
    "button_primary_background_fill_dark": "*primary_500",
    "button_primary_background_fill_hover_dark": "*primary_400",
    "button_primary_text_color": "white",
    "button_secondary_background_fill": "*neutral_100",
    "button_secondary_background_fill_hover": "*neutral_200",
    "button_secondary_background_fill_dark": "*neutral_800",
    "button_secondary_background_fill_hover_dark": "*neutral_700",
    "button_secondary_text_color": "*neutral_700",
    "button_secondary_text_color_dark": "*neutral_200",
    "button_border_width": "0px",
    "button_large_padding": "8px 14px",
    "button_small_padding": "4px 9px",
    "button_large_text_weight": "600",
    "button_medium_text_weight": "500",
    "button_small_text_weight": "500",
    "button_small_text_size": "12px",
    "checkbox_label_background_fill": "transparent",
    "checkbox_label_background_fill_dark": "transparent",
    "checkbox_label_background_fill_selected": "*primary_600",
    "checkbox_label_background_fill_selected_dark": "*primary_700",
    "checkbox_label_text_color_selected": "white",
    "checkbox_label_border_width": "1px",
    "checkbox_label_border_color": "*neutral_200",
    "checkbox_label_border_color_dark": "*neutral_700",
    "checkbox_label_padding": "3px 8px",
    "checkbox_label_text_size": "12px",
    "checkbox_label_gap": "4px",
    "checkbox_background_color_selected": "*primary_600",
    "checkbox_background_color_selected_dark": "*primary_500",
    "checkbox_border_color_selected": "*primary_600",
    "checkbox_border_color_selected_dark": "*primary_500",
    "table_border_color": "*neutral_200",
    "table_border_color_dark": "*neutral_800",
    "table_even_background_fill": "white",
    "table_even_background_fill_dark": "*neutral_900",
    "table_odd_background_fill": "*neutral_50",
    "table_odd_background_fill_dark": "*neutral_900",
    "section_header_text_size": "13px",
    "color_accent_soft": "*primary_50",
    "color_accent_soft_dark": "*primary_950",
}


class StudioTheme(gr.themes.Base):
    """Small radii, thin lines, system fonts: nothing is fetched from the network."""

    def __init__(self) -> None:
        super().__init__(
            primary_hue=PETROL,
            secondary_hue=PETROL,
            neutral_hue=INK,
            spacing_size=sizes.spacing_sm,
            radius_size=sizes.radius_sm,
            text_size=sizes.text_sm,
            font=SANS,
            font_mono=MONO,
        )
        self.name = "studio"
        self.set(**LOOK)


def _scripts() -> list[str]:
    """The page's own scripts. What the curve holds back comes before what listens to it."""
    names = (
        "kernel.js", "curve.js", "tokens.js", "map.js", "differences.js", "studio.js"
    )  # fmt: skip
    return [(ASSETS / name).read_text(encoding="utf-8") for name in names]


def launch_options() -> dict[str, object]:
    """What `Blocks.launch` needs for the look (Gradio 6 takes it there, not in `Blocks`), and how
    many handlers may run."""
    return {
        "theme": StudioTheme(),
        "css_paths": ASSETS / "style.css",
        "head": "".join(f"<script>{text}</script>" for text in _scripts()),
        "max_file_size": UPLOAD,
        "max_threads": THREADS,
        "state_session_capacity": WINDOWS,
        "footer_links": [],
        "i18n": translations(),
    }
