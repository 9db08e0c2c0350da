"""Formats of conversations: what endpoints return and what logging tools export. ``table.py`` lists them."""
