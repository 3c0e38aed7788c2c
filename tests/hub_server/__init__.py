"""A Hugging Face Hub on loopback, for tests and benchmarks: the real `huggingface_hub` client works with it unmodified.

    hub = Hub(folder, tokens={"hf_alice": "alice"}, cdn_host="localhost", xet=True)
    with hub:                                     or hub.start() and hub.stop()
        HfApi(endpoint=hub.endpoint, token="hf_alice").create_repo("alice/bank")

    origin 127.0.0.1:<port>    API and regular files; needs the token            routes.py: what it answers
    storage localhost:<port>   LFS up and down, another host: never a token      store.py: what it keeps
    cas/ on disk               Xet, which hf_xet reads and writes by itself      cards.py: what it says to a card
    faults                     asked for by a regular expression                 faults.py: what goes wrong

It keeps a record of every request (`requests`, `count`, `bytes_in`, `bytes_out`); what Xet moves passes it by (`xet_bytes`).
An error of its own is answered with 500 and raised again by `stop`.
"""

from hub_server.calls import Answer, Request
from hub_server.hub import Hub

__all__ = ["Answer", "Hub", "Request"]
