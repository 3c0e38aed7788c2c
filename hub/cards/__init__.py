"""Model and dataset cards in Markdown, as the Hub shows them.

model.py     a bank's card; scores.py has its scores
datasets.py  a card of datasets
markdown.py  escaping, tables, front matter
"""

from m3dt_agent.hub.cards.datasets import DatasetRow, dataset_card
from m3dt_agent.hub.cards.markdown import MARK
from m3dt_agent.hub.cards.model import model_card

__all__ = ["MARK", "DatasetRow", "dataset_card", "model_card"]
