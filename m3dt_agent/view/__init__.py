"""Pages to look at: what datasets hold, what a bank does, how a training went; each is one HTML file without a server.

    a path ─► write_page ─┬► datasets_page   a folder with datasets                            (datasets.py)
                          ├► bank_page       a bank, also one of the package                   (bank.py)
                          └► run_page        the logs of a training, or a benchmark run        (run.py)
                                 │
                                 └► Page ─► one file: text, tables, data, plotly's own bundle   (page.py)

A page fetches nothing, and says what it could not show and which command makes it.
"""

from .write import Kind, Request, Written, write_page

__all__ = ["Kind", "Request", "Written", "write_page"]
