"""From the cells of a run to a report: tables, intervals, figures, one page.

write.py writes it; comparison.py computes what it says, tables.py, figures.py and page.py how it is shown.
"""

from .write import compare, write_report

__all__ = ["compare", "write_report"]
