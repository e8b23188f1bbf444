"""The report: what a sweep found, as one page, with pictures, a table and a choice."""
