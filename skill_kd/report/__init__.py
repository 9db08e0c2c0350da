"""The one look of everything `evaluate` and `diagnose` show: one HTML file, SVG plots with tables, the model card.

Whatever comes from a model, a log or a user's file is text here, never markup: only `report.markup` makes markup.
"""
