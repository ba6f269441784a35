"""What a run looks like: figures as data once, drawn for W&B (plotly_figures) and as one HTML file (report)."""
