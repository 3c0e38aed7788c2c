"""Model and dataset cards: the README.md that the Hub shows as a repository's page.

model.py     the card of a bank
scores.py    its section about scores
reading.py   the scores of a card, read back
datasets.py  the card of a collection of datasets
markdown.py  front matter, tables, escaping
"""

from m3dt_agent.hub.cards.datasets import DatasetRow, dataset_card
from m3dt_agent.hub.cards.markdown import MARK
from m3dt_agent.hub.cards.model import model_card

__all__ = ["MARK", "DatasetRow", "dataset_card", "model_card"]
