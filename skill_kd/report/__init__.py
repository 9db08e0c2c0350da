"""The report pages of `evaluate` and `diagnose`: one HTML file, SVG plots with tables; and the model card.

Text from a model, a log or a user's file is always escaped: only `report.markup` creates markup.
"""
