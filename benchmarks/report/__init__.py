"""Reports on benchmark runs: tables with intervals, figures, and one HTML page.

write.py            writes a report; compares two methods
comparison.py       computes rows and contrasts from cells; cell_groups.py, caveats.py
statistics.py       scores, intervals and differences; significance.py
paper_numbers.py    the paper's scores that are known
records.py          what a report consists of
tables.py           Markdown, CSV, LaTeX and JSON; figures.py, page.py
"""

from .write import compare, write_report

__all__ = ["compare", "write_report"]
