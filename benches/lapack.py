"""The thin SVD of numpy's LAPACK at the sizes of svd.rs, best of five: `python benches/lapack.py`."""

import time

import numpy as np

for shape in [(64, 64), (320, 320), (640, 640), (1280, 1280), (2048, 1280)]:
    a = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        np.linalg.svd(a, full_matrices=False)
        times.append(time.perf_counter() - start)
    print(shape, f"{1e3 * min(times):.2f} ms")
