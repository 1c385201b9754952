"""The papers' analyses, tables and figures."""
