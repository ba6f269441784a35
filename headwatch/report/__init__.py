"""The report: page, SVG and plotly figures, and their sentences."""
