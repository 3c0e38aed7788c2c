"""Banks, datasets and published weights, in and out. Installed as `m3dt_agent.hub`.

banks.py, datasets.py                        push to and pull from the Hugging Face Hub, or a folder
    pushes.py                                what both pushes do: open or create a repository, then commit part after part
    bank_pushes.py, bank_stages.py, remote_banks.py       what changes with each stage; what a repository says it holds
    dataset_origins.py, dataset_records.py   where datasets come from; what a collection lists of each
client.py                                    one repository; with snapshots.py, cache.py and failures.py
convert_data.py, convert_weights.py          published data and weights, read by published/
cards/                                       the README.md of a repository
"""
