"""Formats of conversations: answers of endpoints and exports of logging tools. ``table.py`` lists them."""
