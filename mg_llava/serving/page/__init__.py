"""The web page (Gradio): what its buttons do, how it is laid out, and the picture on which boxes are drawn by hand."""

from mg_llava.serving.page.actions import Page
from mg_llava.serving.page.layout import add_page

__all__ = ["Page", "add_page"]
