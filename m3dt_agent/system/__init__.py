"""What lies under everything: this machine, its operating system, its disk, and text that others wrote.

platforms.py   what operating systems do differently: locks, reads at a position, flushing
machine.py     cores, memory, devices, precisions, versions; `m3dt doctor`
disk.py        files and folders whole or not at all; paths that cannot be used are one named error
documents.py   the one reader of JSON that others wrote
text.py        shows text of others as text
"""
