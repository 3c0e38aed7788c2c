"""Bounds on what a dataset may hold: above them a file is refused before it is read, because nothing of these tasks needs more.

A stranger's file must not decide how much memory or time is taken, and no number in it may leave float32 when numbers are added
up. The bounds are far above what the 160 tasks need: an episode has at most 501 · 39 observations, a dataset 2,000 episodes.
"""

LARGEST_VALUE = 1e10
"""The largest observation and reward of a step, in magnitude. MuJoCo has the same limit (mjMAXVAL): beyond it a simulation has
diverged. Returns, squares and quotients of such numbers stay finite in float32."""
LARGEST_RETURN = 1e14
"""The largest return-to-go and target return, in magnitude: 10,000 steps of the largest reward."""
SMALLEST_SCALE = 1e-12
"""The smallest standard deviation and return scale that something is divided by. Published deviations are at least 1e-6."""

MOST_EPISODES = 100_000
"""The most episodes of a dataset. The published ones have 2,000."""
MOST_NUMBERS = 1 << 24
"""The most numbers of one array, and of all arrays of an episode together: 128 MB as float64; 160 tasks need 19,539."""
LARGEST_CHUNK = 16_000_000
"""The largest chunk of an HDF5 dataset in bytes. HDF5 takes this much memory to read one number of it; h5py's own are at most
1 MB."""
MOST_READ_PER_BYTE = 100
"""How many bytes the arrays of all episodes may have for each byte of their file. Files that are not compressed have less than
one. Compressed ones reach 40, because HDF5's records of an episode take at least 5 kB."""
