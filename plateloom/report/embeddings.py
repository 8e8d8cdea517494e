"""Maps of cells or wells, colored one way after the other; plate and screen pages both have them."""

from plateloom.report.charts import element, embedding_chart
from plateloom.report.page import grid, join, paragraph


def maps_section(embeddings):
    """One drawing per map and coloring."""
    parts = []
    for embedding in embeddings:
        figures = [
            element("figure", element("figcaption", f"by {name}"), embedding_chart(embedding, name))
            for name in embedding.colorings
        ]
        note = paragraph(embedding.note, "quiet") if embedding.note else None
        parts += [element("h3", embedding.title), note, grid(figures, "grid tight")]
    return join(*parts) if parts else None
