"""How large anything may be that a file gives a size of; what is beyond would end in an abort, or never."""

MOST_OF_A_KIND = 2**24
MOST_WORLDS = 2**20
MOST_NETWORKS = 256
MOST_PROCESSES = 2**10
